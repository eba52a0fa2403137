"""What people's folders really hold, and what the one reader makes of it."""

import io
import struct
import subprocess
import sys
import unicodedata
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, fill_folder, fingerprint
from PIL import Image, ImageOps

from utils.compare_models.tryout import swapped_profile
from utils.config import InputError
from utils.images import read_image, scan_folder
from utils.layout import find_images


@pytest.fixture
def folder(tmp_path) -> Path:
    return fill_folder(tmp_path / "내 사진", {"사과": 3, "cherry": 3})


def jpeg(side: int = 60) -> bytes:
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def test_hidden_and_system_files_are_no_images(folder):
    for name in (".ipynb_checkpoints/0.jpg", "cherry/.ipynb_checkpoints/0.jpg", "cherry/._000.jpg", "@eaDir/0.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(jpeg())
    (folder / "cherry" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    before = fingerprint(folder)
    good, refused = scan_folder(folder)
    assert good["class"].value_counts().to_dict() == {"사과": 3, "cherry": 3}
    assert list(good["path"]) == sorted(
        f"{name}/{number:03d}.jpg" for name in ("사과", "cherry") for number in range(3)
    )
    assert refused.empty
    assert fingerprint(folder) == before


def test_every_bad_file_is_named_with_its_reason(folder):
    bad = {
        "cherry/cut.jpg": (jpeg()[:900], "cannot be decoded; "),
        "cherry/empty.jpg": (b"", "empty (0 bytes)"),
        "cherry/page.jpg": (b"<!DOCTYPE html><html></html>", "web page"),
        "사과/pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    }
    for name, (content, _) in bad.items():
        (folder / name).write_bytes(content)
    before = fingerprint(folder)
    good, refused = scan_folder(folder)
    assert len(good) == 6
    reasons = dict(zip(refused["path"], refused["reason"], strict=True))
    assert set(reasons) == set(bad)
    assert all(words in reasons[name] for name, (_, words) in bad.items()), reasons
    assert fingerprint(folder) == before


def test_thousands_of_bad_files_are_named_by_reason(tmp_path):
    fill_folder(tmp_path, {"apple": 3, "plum": 0})
    for number in range(300):
        (tmp_path / "plum" / f"{number:04d}.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0")
        (tmp_path / "plum" / f"cut{number:04d}.jpg").write_bytes(jpeg()[: 30 + number])
    with pytest.raises(InputError, match="plum has no readable image") as error:
        scan_folder(tmp_path)
    text = str(error.value)
    assert "plum/0000.jpg, plum/0001.jpg, plum/0002.jpg, and 297 more: not an image; it is a Git LFS pointer" in text
    assert "plum/cut0000.jpg, plum/cut0001.jpg, plum/cut0002.jpg, and " in text and len(text) < 1500


def tiff(photometric: int, samples: int, bits: int, order: str, compression: int = 1) -> bytes:
    """A black TIFF of 4×4 pixels."""
    data = bytes(4 * 4 * samples * bits // 8)
    tags = {256: 4, 257: 4, 258: bits, 259: compression, 262: photometric, 273: 8, 277: samples, 278: 4, 279: len(data)}
    table = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = struct.pack(f"{order}HHI", int.from_bytes(b"II" if order == "<" else b"MM"), 42, 8 + len(data))
    return start + data + struct.pack(f"{order}H", len(tags)) + table + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_of_an_unusual_kind_is_told_from_other_files(tmp_path, order):
    (tmp_path / "plain.tif").write_bytes(tiff(1, 1, 8, order))
    assert read_image(tmp_path / "plain.tif").size == (4, 4)
    for kind in ((1, 1, 24), (1, 2, 8), (5, 5, 8)):
        (tmp_path / "odd.tif").write_bytes(tiff(*kind, order))
        with pytest.raises(InputError, match="odd.tif: a TIFF .* of a kind that Pillow does not read; save it as RGB"):
            read_image(tmp_path / "odd.tif")


def test_a_link_to_nowhere_is_refused_and_the_others_are_read(folder):
    (folder / "cherry" / "gone.jpg").symlink_to("moved away.jpg")
    good, refused = scan_folder(folder)
    assert len(good) == 6
    assert list(refused["path"]) == ["cherry/gone.jpg"]


def test_rotated_photos_stand_upright(tmp_path):
    upright = np.zeros((20, 40, 3), np.uint8)
    upright[:10, :20, 0] = 255  # red in the upper left corner
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate clockwise to see it upright
    Image.fromarray(np.rot90(upright)).save(tmp_path / "turned.png", exif=exif)
    assert (np.asarray(read_image(tmp_path / "turned.png")) == upright).all()


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_stands_upright_as_pillow_turns_it(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    with Image.open(tmp_path / "photo.png") as photo:
        expected = np.asarray(ImageOps.exif_transpose(photo))
    assert (np.asarray(read_image(tmp_path / "photo.png")) == expected).all()


def exif_block(*entries: bytes) -> bytes:
    """EXIF of a camera that was turned (orientation 6), and of further entries of 12 bytes."""
    entries = (struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0), *entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4) + b"\xff" * 20


@pytest.mark.parametrize("kind", range(1, 17))
def test_photos_with_malformed_exif_are_read_and_turned(tmp_path, kind):
    """A resolution of each kind of number that there is and of some that there are not, and one past the end."""
    content = exif_block(struct.pack("<HHII", 0x011A, kind, 1, 38), struct.pack("<HHII", 0x9286, kind, 9, 10_000))
    upright = Image.fromarray(np.arange(16 * 32 * 3, dtype=np.uint8).reshape(16, 32, 3))
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "photo.jpg", exif=content, quality=100, subsampling=0)
    assert read_image(tmp_path / "photo.jpg").size == (32, 16)


@pytest.mark.parametrize("content", [b"Exif\0\0", b"Exif\0\0none", exif_block()[:16]], ids=["empty", "none", "cut"])
def test_photos_whose_exif_cannot_be_read_are_taken_as_they_are(tmp_path, content):
    Image.new("RGB", (16, 32)).save(tmp_path / "photo.jpg", exif=content)
    assert read_image(tmp_path / "photo.jpg").size == (16, 32)


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path, dtype):
    values = np.array([[0, 257], [32896, 65535]], dtype)
    mode = "I;16B" if dtype == ">u2" else "I;16"
    Image.frombytes(mode, (2, 2), values.tobytes()).save(tmp_path / "deep.tif")
    assert np.asarray(read_image(tmp_path / "deep.tif"))[..., 0].tolist() == [[0, 1], [128, 255]]


@pytest.mark.parametrize("white", [255, 1023, 4095, 16383, 65535])
@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_white_of_a_sensor_with_fewer_bits_is_white(tmp_path, white, suffix):
    pixels = np.linspace(0, white, 12).astype(np.uint16).reshape(3, 4)
    Image.fromarray(pixels).save(tmp_path / f"sensor.{suffix}")
    seen = np.asarray(read_image(tmp_path / f"sensor.{suffix}"))[..., 0]
    assert np.abs(seen.ravel() - np.linspace(0, 255, 12)).max() <= 1


def test_white_is_shown_in_the_table_of_modes(tmp_path):
    fill_folder(tmp_path, {"a": 1, "b": 1})
    Image.fromarray(np.array([[0, 4080]], np.uint16)).save(tmp_path / "a" / "sensor.png")
    assert "I;16, white 4095" in set(scan_folder(tmp_path)[0]["mode"])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colors_are_those_that_the_profile_means(tmp_path, mode):
    """By a profile whose first channel is green."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    stored = Image.fromarray(pixels[..., [1, 0, 2]]).convert(mode)
    stored.save(tmp_path / "photo.png", icc_profile=swapped_profile())
    seen = np.asarray(read_image(tmp_path / "photo.png")).astype(int)
    expected = np.asarray(stored.convert("RGB"))[..., [1, 0, 2]]
    assert np.abs(seen - expected).max() <= 1


@pytest.mark.parametrize("profile", [b"", b"no profile", swapped_profile()[:200]], ids=["none", "text", "cut"])
def test_without_a_sound_profile_colors_are_srgb(tmp_path, profile):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png", icc_profile=profile)
    assert (np.asarray(read_image(tmp_path / "photo.png")) == pixels).all()


def test_grey_with_a_profile_of_grey_is_grey(tmp_path):
    Image.new("L", (8, 8), 100).save(
        tmp_path / "photo.png", icc_profile=swapped_profile()
    )  # of three channels: not of it
    assert set(np.asarray(read_image(tmp_path / "photo.png")).ravel()) == {100}


def test_negative_of_16_bits_is_read_as_a_positive(tmp_path):
    pixels = np.array([[0, 1000], [3000, 4095]], np.uint16)
    Image.fromarray(pixels).save(tmp_path / "negative.tif")
    content = (tmp_path / "negative.tif").read_bytes()
    photometric = b"\x06\x01\x03\x00\x01\x00\x00\x00"  # tag 262, one short number, which follows
    assert photometric + b"\1" in content
    (tmp_path / "negative.tif").write_bytes(content.replace(photometric + b"\1", photometric + b"\0"))
    assert np.asarray(read_image(tmp_path / "negative.tif"))[..., 0].tolist() == [[255, 193], [68, 0]]


def test_pixels_without_an_agreed_range_are_refused(tmp_path):
    for name, pixels in {"float": np.ones((9, 9), np.float32), "int32": np.full((9, 9), 70_000, np.int32)}.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.tif")
        with pytest.raises(InputError, match=f"{name}.tif.*convert it to 8 or 16 bits"):
            read_image(tmp_path / f"{name}.tif")


def test_transparent_pixels_are_white_and_cmyk_is_converted(tmp_path):
    hidden = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    hidden.putpixel((0, 0), (0, 0, 200, 255))
    hidden.save(tmp_path / "rgba.png")
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 200, 200, 0, 0])
    palette.putpixel((0, 0), 0)
    palette.save(tmp_path / "palette.png", transparency=1)
    for name in ("rgba.png", "palette.png"):
        image = read_image(tmp_path / name)
        assert (image.mode, image.getpixel((0, 0)), image.getpixel((3, 3))) == ("RGB", (0, 0, 200), (255, 255, 255))
    Image.new("CMYK", (9, 9), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=100)
    red, green, blue = read_image(tmp_path / "print.jpg").getpixel((4, 4))
    assert red > 240 and green < 15 and blue < 15


def test_every_bomb_is_refused_and_the_limit_stays_on_for_others(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90_000)
    sides = [290, 400, 500] * 12  # below the limit, above it, above twice the limit
    for number, side in enumerate(sides):
        Image.new("RGB", (side, side)).save(tmp_path / f"{number}.png")

    def verdict(number: int) -> str:
        try:
            return f"{read_image(tmp_path / f'{number}.png').size[0]}"
        except InputError as error:
            return str(error)

    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        verdicts = list(pool.map(verdict, range(len(sides))))
    for number, (side, words) in enumerate(zip(sides, verdicts, strict=True)):
        assert words == "290" if side == 290 else f"{number}.png: more than 90,000 pixels" in words
    assert warnings.filters == before, "the reader changed how the whole process treats warnings"


@pytest.mark.parametrize(
    "names",
    [("Cat", "cat"), tuple(unicodedata.normalize(form, "사과") for form in ("NFC", "NFD"))],
    ids=["case", "form"],
)
def test_two_spellings_of_one_class_stop_the_run(tmp_path, names):
    data = tmp_path / "data"
    fill_folder(data, {names[0]: 2, "dog": 2})
    (data / names[1]).mkdir(exist_ok=True)
    if len(list(data.iterdir())) == 2:
        return  # this file system knows one of the two spellings only
    with pytest.raises(InputError, match="spells one class in two ways") as error:
        scan_folder(data)
    assert all(ascii(name) in str(error.value) for name in names)


@pytest.mark.parametrize("link", ["cherry/self", "cherry/back", "loop"])
def test_a_link_that_leads_back_adds_no_image(folder, link):
    (folder / link).symlink_to({"cherry/self": ".", "cherry/back": "..", "loop": "."}[link])
    good, _ = scan_folder(folder)
    assert good["class"].value_counts().to_dict() == {"사과": 3, "cherry": 3}


def test_folders_that_hold_no_classes_are_explained(folder, tmp_path):
    (folder / "plum").mkdir()
    with pytest.raises(InputError, match="class folder plum has no readable image"):
        scan_folder(folder)
    with pytest.raises(InputError, match=r"nowhere does not exist: expected one folder per class"):
        scan_folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has 0 class folders, found \['000.jpg', .*expected one folder per class"):
        scan_folder(folder / "사과")


def test_photos_of_a_phone_are_read_upright_and_what_is_left_out_is_counted(tmp_path):
    """HEIC as an iPhone writes it, AVIF, and beside them the films and edits of Live Photos."""
    half = Image.new("RGB", (40, 20), "red")
    half.paste("blue", (20, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate clockwise to see it upright
    fill_folder(tmp_path / "photos", {"cat": 3, "dog": 3})
    for name in ("cat/IMG_1.HEIC", "dog/IMG_2.avif"):
        half.save(tmp_path / "photos" / name, exif=exif.tobytes(), quality=95)
        upright = read_image(tmp_path / "photos" / name)
        assert upright.size == (20, 40)
        (top, _, _), (_, _, bottom) = upright.getpixel((10, 5)), upright.getpixel((10, 35))
        assert top > 200 and bottom > 200
    for name in ("cat/IMG_1.MOV", "cat/IMG_3.mov", "cat/IMG_1.AAE", "dog/notes", "dog/.DS_Store"):
        (tmp_path / "photos" / name).write_bytes(b"no image")
    good, refused = scan_folder(tmp_path / "photos")
    assert {"cat/IMG_1.HEIC", "dog/IMG_2.avif"} <= set(good["path"]) and refused.empty
    assert find_images(tmp_path / "photos")[1] == {".mov": 2, ".aae": 1, "(no extension)": 1}


@pytest.mark.parametrize("name", ["a.jfif", "a.JPE", "a.ppm", "a.jp2", "a.tga", "a.qoi", "a.pcx", "a.dib", "photo"])
def test_whatever_pillow_reads_is_an_image(folder, name):
    suffix = Path(name).suffix or ".webp"
    Image.new("RGB", (9, 9)).save(folder / f"a{suffix}")
    (folder / f"a{suffix}").rename(folder / "cherry" / name)
    for other in ("BMW", "P5 of 9", "readme"):  # they begin as images do, or not
        (folder / "cherry" / other).write_text(f"{other}\n")
    for other in ("film.mpg", "table.h5", "page.eps", "labels.json"):
        (folder / "cherry" / other).write_bytes(b"no photo")
    good, refused = scan_folder(folder)
    assert f"cherry/{name}" in set(good["path"]) and len(good) == 7 and refused.empty
    assert find_images(folder)[1] == {"(no extension)": 3, ".mpg": 1, ".h5": 1, ".eps": 1, ".json": 1}


@pytest.mark.parametrize("name", ["cat ", " cat", "cat\N{NO-BREAK SPACE}", "Cat "])
def test_spaces_make_no_second_class(tmp_path, name):
    with pytest.raises(InputError, match="spells one class in two ways"):
        scan_folder(fill_folder(tmp_path, {"cat": 2, "dog": 2, name: 2}))


def test_heic_without_its_package_is_refused_with_the_command(tmp_path):
    """As where somebody only predicts, with onnxruntime, numpy and Pillow."""
    Image.new("RGB", (20, 20)).save(tmp_path / "a.heic")
    code = "import sys; sys.modules['pillow_heif'] = None; import pathlib; from utils.images import read_image; "
    code += "read_image(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path / "a.heic")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert "photos in HEIC need one more package: pip install pillow-heif" in done.stderr
