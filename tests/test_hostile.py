"""One folder with everything that people's folders hold, scanned once; one test per fault.

D3, D11, D13 and D14 stop the run or concern the split, so they have folders of their own.
"""

import io
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import fill_folder
from PIL import Image

from utils.config import InputError
from utils.eda.duplicates import join_groups
from utils.images import read_image, scan_folder
from utils.split import load_index, save_index, split_index

RED, GREEN = (200, 30, 40), (30, 180, 60)
NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def jpeg(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("hostile") / "사진 모음"
    for name in ("apple", "체리 pie", ".ipynb_checkpoints", "__MACOSX", "apple/.ipynb_checkpoints"):
        (root / name).mkdir(parents=True)
    apple, good = root / "apple", jpeg(Image.fromarray(NOISE), quality=95)
    for hidden in (".ipynb_checkpoints/a-checkpoint.jpg", "__MACOSX/a.jpg", "apple/.ipynb_checkpoints/a.jpg"):
        (root / hidden).write_bytes(good)
    (apple / "._a.jpg").write_bytes(b"\0" * 100)
    (apple / "Thumbs.db").write_bytes(b"\0" * 100)
    (apple / "a.jpg").write_bytes(good)
    (apple / "truncated.jpg").write_bytes(good[: len(good) // 2])
    (apple / "empty.jpg").write_bytes(b"")
    (apple / "page.jpg").write_text("<!DOCTYPE html><title>404</title>")
    (apple / "pointer.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter to the right
    Image.fromarray(NOISE).save(apple / "turned.png", exif=exif)
    Image.fromarray((np.arange(2400, dtype=np.uint16) * 27).reshape(40, 60)).save(apple / "deep.png")
    Image.fromarray(np.ones((40, 60), np.float32)).save(apple / "float.tiff")
    Image.new("RGBA", (40, 40), (*RED, 0)).save(apple / "clear.png")
    Image.new("CMYK", (40, 40), (0, 255, 255, 0)).save(apple / "print.jpg")
    frames = [Image.new("RGB", (40, 40), color) for color in (RED, GREEN)]
    frames[0].save(apple / "animated.gif", save_all=True, append_images=frames[1:])
    frames[1].save(apple / "really a png.jpg", "PNG")
    Image.new("1", (14_000, 14_000)).save(apple / "bomb.png")
    Image.fromarray(NOISE).save(root / "체리 pie" / f"{'길다' * 40}.png")
    Image.fromarray(NOISE[::-1]).save(root / "체리 pie" / "b.png")
    shutil.copy(root / "체리 pie" / "b.png", apple / "b in another class.png")
    return root


@pytest.fixture(scope="module")
def scanned(folder) -> tuple[pd.DataFrame, pd.DataFrame]:
    return scan_folder(folder)


def pixels(folder: Path, name: str) -> np.ndarray:
    return np.asarray(read_image(folder / name))


def test_d1_checkpoints_of_jupyter_are_no_class(scanned):
    assert set(scanned[0]["class"]) == {"apple", "체리 pie"}
    assert not scanned[0]["path"].str.contains("checkpoint").any()


def test_d2_files_of_the_system_are_no_images(scanned):
    names = {Path(path).name for part in scanned for path in part["path"]}
    assert not names & {"._a.jpg", "Thumbs.db", "a-checkpoint.jpg"}


def test_d3_images_in_the_root_and_empty_classes(tmp_path):
    fill_folder(tmp_path, {"apple": 3})
    (tmp_path / "tomato").mkdir()
    with pytest.raises(InputError, match="class folder tomato has no readable image"):
        scan_folder(tmp_path)
    shutil.rmtree(tmp_path / "tomato")
    with pytest.raises(InputError, match="1 class folders, found .*expected one folder per class"):
        scan_folder(tmp_path)


def test_d4_exactly_the_bad_files_are_refused_with_reasons(scanned):
    reasons = dict(zip(scanned[1]["path"], scanned[1]["reason"], strict=True))
    expected = {
        "truncated.jpg": "truncated",
        "empty.jpg": "0 bytes",
        "page.jpg": "web page",
        "pointer.png": "Git LFS pointer",
        "float.tiff": "no agreed range",
        "bomb.png": "pixels; make it smaller",
    }
    assert set(reasons) == {f"apple/{name}" for name in expected}
    for name, words in expected.items():
        assert words in reasons[f"apple/{name}"]


def test_d5_orientation_is_applied(folder):
    assert np.array_equal(pixels(folder, "apple/turned.png"), np.rot90(NOISE, -1))


def test_d6_16_bits_are_scaled(folder):
    expected = np.round(np.arange(2400) * 27 / 257).reshape(40, 60)
    assert np.abs(pixels(folder, "apple/deep.png")[..., 0] - expected).max() <= 1


def test_d7_transparent_is_white(folder):
    assert (pixels(folder, "apple/clear.png") == 255).all()


def test_d8_odd_formats_become_rgb(folder, scanned):
    assert np.abs(pixels(folder, "apple/animated.gif") - np.array(RED)).max() <= 8, "not the first frame"
    assert (pixels(folder, "apple/really a png.jpg") == GREEN).all()
    assert pixels(folder, "apple/print.jpg").shape == (40, 40, 3)
    assert {"RGB", "CMYK", "P"} <= set(scanned[0]["mode"])


def test_d9_a_bomb_does_not_switch_the_limit_off(scanned):
    assert "apple/bomb.png" in set(scanned[1]["path"])
    assert Image.MAX_IMAGE_PIXELS


def test_d10_hangul_spaces_and_long_names(folder, scanned):
    (name,) = [path for path in scanned[0]["path"] if "길다" in path]
    assert np.array_equal(pixels(folder, name), NOISE)
    assert all(unicodedata.is_normalized("NFC", name) for name in scanned[0]["class"])


def test_d11_a_loop_adds_nothing(tmp_path):
    fill_folder(tmp_path, {"apple": 3, "tomato": 3})
    os.symlink(tmp_path, tmp_path / "apple" / "loop", target_is_directory=True)
    assert len(scan_folder(tmp_path)[0]) == 6


def test_d12_a_copy_in_another_class_is_in_its_group(scanned):
    index, _ = scanned
    groups = join_groups(index, index["path"])
    copies = groups[index["path"].isin(["apple/b in another class.png", "체리 pie/b.png"])]
    assert copies.nunique() == 1
    assert groups.nunique() == len(index) - 1


def test_d13_three_images_are_one_in_each_part():
    index = pd.DataFrame({"path": [f"{number}.jpg" for number in range(23)], "class": ["a"] * 20 + ["b"] * 3})
    index["group"] = index["path"]
    assert set(split_index(index)[index["class"] == "b"]) == {"train", "valid", "test"}
    with pytest.raises(InputError, match=r"too few in b \(2\)"):
        split_index(index[:-1])


def test_d14_a_changed_folder_is_refused(tmp_path):
    folder = fill_folder(tmp_path / "photos", {"a": 4, "b": 4})
    index, refused = scan_folder(folder)
    index["group"], index["split"] = index["path"], "train"
    save_index(tmp_path / "split.csv", index, refused)
    (folder / "a" / "000.jpg").rename(folder / "a" / "new.jpg")
    with pytest.raises(InputError, match=r"missing: a/000.jpg; new: a/new.jpg.*run EDA.ipynb again"):
        load_index(tmp_path / "split.csv", folder)
    folder.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"photos are no longer in .*photos: say where they are"):
        load_index(tmp_path / "split.csv", folder)


def test_d15_nothing_is_written_into_the_folder(folder, scanned):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    scan_folder(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_d16_a_name_that_is_not_utf_8_is_refused_by_one_that_can_be_written(tmp_path):
    folder = fill_folder(tmp_path / "photos", {"a": 4, "b": 4})
    old = os.fsencode(folder / "a") + b"/caf\xe9.jpg"
    try:
        shutil.copy(folder / "a" / "000.jpg", old)
    except OSError:
        return  # this file system takes UTF-8 only
    index, refused = scan_folder(folder)
    assert refused[["path", "reason"]].values.tolist() == [["a/caf\\udce9.jpg", "its name is not UTF-8; rename it"]]
    index["group"], index["split"] = index["path"], "train"
    save_index(tmp_path / "split.csv", index, refused)
    assert len(load_index(tmp_path / "split.csv", folder)) == 8
    os.rename(os.fsencode(folder / "a"), os.fsencode(folder) + b"/\xb0\xa1")
    with pytest.raises(InputError, match=r"name of class \\udcb0\\udca1 is not UTF-8; rename the folder"):
        scan_folder(folder)
