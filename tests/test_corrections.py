"""What a person decided about images is applied, counted, kept, and never lost."""

import os
import struct
import zlib

import numpy as np
import pandas as pd
import pytest
from conftest import fill_folder
from PIL import Image

from utils.config import InputError
from utils.eda.corrections import (
    apply_corrections,
    cautions,
    list_suspects,
    read_images,
    read_list,
    write_list,
    write_suspects,
)
from utils.images import scan_folder
from utils.report import update_report
from utils.split import load_index, save_index, split_index

HEADER = "path,sha256,action,note"


@pytest.fixture
def scanned(tmp_path):
    """A folder of two classes, one file that is no image, and the run's folder."""
    data = fill_folder(tmp_path / "내 사진", {"사과": 5, "cherry": 5})
    (data / "cherry" / "bad.jpg").write_bytes(b"")
    (tmp_path / "run").mkdir()
    return tmp_path / "run", data, *scan_folder(data)


def test_a_second_folder_of_the_same_name_does_not_replace_the_results_of_the_first(tmp_path):
    first, second = (fill_folder(tmp_path / place / "photos", {"cat": 3, "dog": 3}) for place in "ab")
    (tmp_path / "run").mkdir()
    _, _, section = read_images(first, tmp_path / "run")
    read_images(second, tmp_path / "run")  # there is no result yet
    update_report(tmp_path / "run", "dataset", section)
    read_images(tmp_path / "a" / ".." / "a" / "photos", tmp_path / "run")
    with pytest.raises(InputError, match=f"holds the results of {first}, not of {second}: give this run a name"):
        read_images(second, tmp_path / "run")


def test_classes_of_a_few_images_are_named(tmp_path):
    data = fill_folder(tmp_path / "photos", {"cat": 3, "dog": 9, "cow": 10})
    caution = read_images(data, tmp_path / "run")[2]["caution"]
    assert caution.startswith("cat 3, dog 9: fewer than 10 images tell nothing of a class")


def test_colors_of_12_bits_in_files_of_16_do_not_turn_black_in_silence(tmp_path):
    data = fill_folder(tmp_path / "photos", {"cat": 10, "dog": 10})
    row = b"\0" + np.full((9, 3), 4000, ">u2").tobytes()
    chunks = {b"IHDR": struct.pack(">IIBBBBB", 9, 9, 16, 2, 0, 0, 0), b"IDAT": zlib.compress(row * 9), b"IEND": b""}
    parts = [struct.pack(">I", len(body)) + kind + body for kind, body in chunks.items()]
    sums = [struct.pack(">I", zlib.crc32(part[4:])) for part in parts]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(part + check for part, check in zip(parts, sums, strict=True))
    (data / "cat" / "microscope.png").write_bytes(content)
    index, _, section = read_images(data, tmp_path / "run")
    assert "images that are nearly black: 1 (cat/microscope.png)" in section["caution"]
    assert "RGB, nearly black" in set(index["mode"])


@pytest.mark.parametrize("mask", ["000.png", "000_mask.png", "000_Mask_1.png", "000-seg.jpg"])
def test_masks_beside_photos_are_named(tmp_path, mask):
    data = fill_folder(tmp_path / "photos", {"cat": 10, "dog": 10})
    assert read_images(data, tmp_path / "run")[2]["caution"] == "", "a name in two classes is no mask"
    Image.new("L", (60, 60)).save(data / "cat" / mask)
    caution = read_images(data, tmp_path / "run")[2]["caution"]
    assert (
        "2 images bear the name of another one beside them" in caution
        and f"cat/{mask}" in caution
        and "cat/000.jpg" in caution
    )
    assert "if they are masks" in caution


@pytest.mark.parametrize("names", ["mask.png seg.png", "a1.jpg a2.jpg", "a.1.jpg a.2.jpg", "gasmask.jpg gas.jpg"])
def test_names_that_merely_resemble_each_other_are_no_masks(names):
    paths = [f"cat/{name}" for name in names.split()] + [f"cat/{number}" for number in range(10)]
    assert cautions(pd.DataFrame({"path": paths, "class": "cat", "mode": "RGB"})) == ""


def lines(index: pd.DataFrame, decisions: dict[str, str], header: str = HEADER, delimiter: str = ",") -> str:
    """Write decisions, by path, as a person would who has copied path and hash."""
    digests = index.set_index("path")["sha256"]
    rows = [delimiter.join([path, digests.get(path, "0" * 64), action, ""]) for path, action in decisions.items()]
    return "\n".join([header.replace(",", delimiter), *rows]) + "\n"


def classes(index: pd.DataFrame) -> dict[str, str]:
    return dict(zip(index["path"], index["class"], strict=True))


def test_without_a_file_nothing_is_changed(scanned):
    run, _, index, refused = scanned
    same, same_refused, counts = apply_corrections(run, index, refused)
    assert same.equals(index) and same_refused.equals(refused) and counts == {"relabelled": 0, "dropped": 0}
    assert not list(run.iterdir())


def test_corrected_images_are_what_later_notebooks_read(scanned):
    run, data, index, refused = scanned
    decisions = {"사과/000.jpg": "cherry", "cherry/001.jpg": "drop", "cherry/002.jpg": "cherry"}
    (run / "corrections.csv").write_text(lines(index, decisions), encoding="utf-8")
    corrected, refused, counts = apply_corrections(run, index, refused)
    assert counts == {"relabelled": 1, "dropped": 1}
    assert dict(zip(refused["path"], refused["reason"], strict=True))["cherry/001.jpg"] == "dropped by hand"
    corrected["group"] = corrected["path"]
    corrected["split"] = split_index(corrected)
    save_index(run / "split.csv", corrected, refused)
    read = classes(load_index(run / "split.csv", data))
    assert read["사과/000.jpg"] == "cherry" and "cherry/001.jpg" not in read and len(read) == 9


def test_images_of_a_class_called_drop_are_not_dropped(tmp_path):
    run, data = tmp_path, fill_folder(tmp_path / "photos", {"Drop": 5, "puddle": 5})
    index, refused = scan_folder(data)
    (run / "corrections.csv").write_text(lines(index, {"puddle/000.jpg": "drop"}), encoding="utf-8")
    with pytest.raises(InputError, match=r"drop is neither “drop image” nor a class \(puddle, class drop\)"):
        apply_corrections(run, index, refused)
    decisions = {"puddle/000.jpg": "class drop", "puddle/001.jpg": "Drop image", "Drop/000.jpg": "puddle"}
    (run / "corrections.csv").write_text(lines(index, decisions), encoding="utf-8")
    corrected, _, counts = apply_corrections(run, index, refused)
    assert counts == {"relabelled": 2, "dropped": 1} and "puddle/001.jpg" not in set(corrected["path"])
    assert classes(corrected)["puddle/000.jpg"] == "Drop" and classes(corrected)["Drop/000.jpg"] == "puddle"


@pytest.mark.parametrize(
    ("delimiter", "encoding"),
    [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-8")],
    ids=["plain", "semicolons", "tabs"],
)
def test_what_a_spreadsheet_on_windows_makes_of_it_is_read(scanned, delimiter, encoding):
    run, _, index, refused = scanned
    text = lines(index, {"사과/000.jpg": '" Cherry "', "cherry/001.jpg": "Drop"}, "Path,SHA256,Action,Note", delimiter)
    text = text.replace("/", "\\").replace("\n", "\r\n") + delimiter * 3 + "\r\n"
    (run / "corrections.csv").write_bytes(text.encode(encoding))
    corrected, _, counts = apply_corrections(run, index, refused)
    assert counts == {"relabelled": 1, "dropped": 1} and classes(corrected)["사과/000.jpg"] == "cherry"


def test_all_lines_that_do_not_fit_are_named_at_once(scanned):
    run, data, index, refused = scanned
    text = lines(
        index, {"사과/000.jpg": "pear", "사과/009.jpg": "drop", "cherry/001.jpg": "drop", "cherry/003.jpg": "drop"}
    )
    text += lines(index, {"cherry/001.jpg": "사과"}).partition("\n")[2] + "cherry/002.jpg,,drop,\n"
    (run / "corrections.csv").write_text(text, encoding="utf-8")
    (data / "cherry" / "003.jpg").write_bytes((data / "cherry" / "004.jpg").read_bytes())
    index, refused = scan_folder(data)
    with pytest.raises(InputError) as error:
        apply_corrections(run, index, refused)
    for sentence in (
        "사과/000.jpg: pear is neither “drop” nor a class (cherry, 사과)",
        "사과/009.jpg: there is no such image any more",
        "cherry/001.jpg: its lines contradict each other (drop and 사과)",
        "cherry/002.jpg: its sha256 is missing",
        "cherry/003.jpg: the image has changed since",
    ):
        assert sentence in str(error.value)
    assert (run / "corrections.csv").read_text(encoding="utf-8") == text


@pytest.mark.parametrize(("moved", "left"), [(5, 0), (3, 2)])
def test_a_class_that_corrections_empty_is_named(scanned, moved, left):
    run, _, index, refused = scanned
    decisions = {f"사과/{number:03d}.jpg": "cherry" for number in range(moved)}
    (run / "corrections.csv").write_text(lines(index, decisions), encoding="utf-8")
    with pytest.raises(InputError, match=rf"leaves too few images of 사과 \({left} of 5\)"):
        apply_corrections(run, index, refused)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has no column path, sha256, action"),
        (b"name,label\n1,2\n", "has no column path, sha256, action"),
        ("사과,1,2\n".encode("cp949"), "is not text in UTF-8"),
        (HEADER.encode("utf-16"), "is not text in UTF-8: save it as “CSV UTF-8”"),
        (f'{HEADER}\n"cherry/001.jpg,1,drop,\n'.encode(), "cannot be read: unexpected end of data"),
        (f"{HEADER}\ncherry/001.jpg,1,drop,blurred, dark\n".encode(), "Text with a comma in it needs quotes"),
    ],
)
def test_a_damaged_file_is_refused_in_a_sentence(scanned, content, words):
    run, _, index, refused = scanned
    (run / "corrections.csv").write_bytes(content)
    with pytest.raises(InputError, match=words):
        apply_corrections(run, index, refused)
    assert (run / "corrections.csv").read_bytes() == content


def test_what_was_filled_in_among_the_suspects_is_kept(scanned):
    run, _, index, refused = scanned
    (run / "corrections.csv").write_text(lines(index, {"cherry/001.jpg": "drop"}), encoding="utf-8")
    suspects = index.assign(action="", note="looks like cherry, they say")
    assert "cherry/001.jpg" not in set(write_suspects(run, suspects)["path"])
    text = (run / "suspects.csv").read_text(encoding="utf-8-sig")
    digest = index.set_index("path")["sha256"]["사과/000.jpg"]
    (run / "suspects.csv").write_text(text.replace(f"{digest},", f"{digest},cherry"), encoding="utf-8")
    for _ in range(2):  # a second run finds it where the first one put it
        corrected, _, counts = apply_corrections(run, index, refused)
        assert counts == {"relabelled": 1, "dropped": 1} and classes(corrected)["사과/000.jpg"] == "cherry"
        assert "사과/000.jpg" not in set(write_suspects(run, suspects)["path"])
    assert len((run / "corrections.csv").read_text(encoding="utf-8").splitlines()) == 3


def test_columns_and_delimiter_of_a_person_stay(scanned):
    run, _, index, refused = scanned
    before = lines(index, {"cherry/001.jpg": "drop"}, f"{HEADER},who", ";").replace("drop;", "drop;blurred;me")
    (run / "corrections.csv").write_text(before, encoding="utf-8")
    (run / "suspects.csv").write_text(lines(index, {"cherry/000.jpg": "사과"}), encoding="utf-8")
    apply_corrections(run, index, refused)
    written = (run / "corrections.csv").read_text(encoding="utf-8-sig").splitlines()
    assert written[:2] == before.splitlines()[:2]
    assert written[2].startswith("cherry/000.jpg;") and ";사과;" in written[2] and len(written) == 3


def test_names_that_a_spreadsheet_would_compute_are_text_to_it_and_come_back_as_they_were(tmp_path):
    names = ["=2+2", "+1", "-1", "@sum", "'quoted", "'=2", "plain", "nan"]
    table = pd.DataFrame({"path": [f"{name}/0.jpg" for name in names], "sha256": "0", "action": names, "note": ""})
    write_list(tmp_path / "list.csv", table)
    text = (tmp_path / "list.csv").read_text(encoding="utf-8-sig")
    assert not [cell for line in text.splitlines() for cell in line.split(",") if cell.startswith(("=", "+", "-", "@"))]
    read = read_list(tmp_path / "list.csv")
    assert list(read["path"]) == list(table["path"]) and list(read["action"]) == names


def test_corrections_that_eda_has_not_seen_stop_the_later_notebooks(scanned):
    run, data, index, refused = scanned
    index["group"] = index["path"]
    index["split"] = split_index(index)
    save_index(run / "split.csv", index, refused)
    write_list(run / "corrections.csv", index[:1].assign(action="drop", note="")[HEADER.split(",")])
    os.utime(run / "corrections.csv", times=(2_000_000_000, 2_000_000_000))
    with pytest.raises(
        InputError, match="corrections.csv has changed since EDA.ipynb split the data: run EDA.ipynb again"
    ):
        load_index(run / "split.csv", data)


def test_suspects_come_with_their_reasons_the_surest_first():
    index = pd.DataFrame({"path": [f"{name}/{number}.jpg" for name in "ab" for number in range(10)]})
    index["class"], index["pixels"] = index["path"].str[0], index["path"]
    index.loc[13, "pixels"] = "a/3.jpg"
    features = np.random.default_rng(0).normal(size=(20, 5))
    probability = np.where(index["class"].to_numpy()[:, None] == ["a", "b"], 0.9, 0.1)
    probability[5] = 0.03, 0.97
    found = list_suspects(index, np.array([(3, 13), (4, 14)]), probability, features)
    assert list(found.index[:5]) == [3, 13, 4, 14, 5]
    notes = found["note"]
    assert notes[3].startswith("exact copy of b/3.jpg under b") and notes[14].startswith("near copy of a/4.jpg under a")
    assert notes[5].startswith("looks like b (0.97)")
    assert notes.str.contains("outlier").sum() == 6 and (found["action"] == "").all()
