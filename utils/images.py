"""The one way to find and open an image."""

from __future__ import annotations

import hashlib
import io
import math
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from utils import parallel
from utils.config import THREADS, InputError, by_reason, listing, relative, require
from utils.files import file_size, likely_cause, sha256
from utils.parallel import check_copy

if TYPE_CHECKING:  # utils.predict opens images without pandas
    import pandas as pd

COLUMNS = ["path", "class", "width", "height", "mode", "sha256", "pixels", "reason"]
DARK, BLACK = 32, ", nearly black"  # what is added to the mode of an image without a brighter value, of 255
PICTURE = 64  # pixels a side of the small copies that the data are looked at with
HEIC = {".heic", ".heif"}
NO_PHOTOS = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}  # Pillow knows them and opens none by itself
PHOTOS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # what a file without a suffix may be
SYSTEM_NAMES = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "Thumbs.db", "desktop.ini"}
WHITES = (2**8 - 1, 2**10 - 1, 2**12 - 1, 2**14 - 1, 2**16 - 1)  # of sensors whose data are kept in 16 bits
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how one begins
UNUSUAL_TIFF = "a TIFF of a kind that Pillow does not read; save it as RGB, or as grey of 8 or 16 bits"
TURNS = {  # from EXIF's orientation to upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION = 274  # a tag of EXIF
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # a tag of TIFF and one of its values
PARTS_OF_A_SPLIT = {"train", "training", "val", "valid", "validation", "test", "testing"}
LAYOUT = "expected one folder per class with images in it, as in data/train/apple/*.jpg"


def scan_folder(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Decode every image below ``folder/<class>/`` once and tell good files from bad ones.

    Returns the index (path relative to `folder`, class, width, height, mode, sha256 of the file, and pixels, a hash of
    what `read_image` makes of it, equal for exact copies), sorted by path, and the refused files (path, class, reason,
    sha256). Hidden and system files (``.ipynb_checkpoints``, ``Thumbs.db``) are skipped, and so is what is no
    image, see `count_skipped`. Raises InputError, naming all at once, when a class is left without images.
    """
    import pandas as pd

    files = [(name, path, file_size(path)) for name, path in list_images(folder)]
    table = pd.DataFrame(parallel.run(partial(_describe, folder), files, "decode", THREADS), columns=COLUMNS)
    table = table.sort_values("path", ignore_index=True)
    readable = table["reason"] == ""
    good = table[readable].drop(columns="reason").reset_index(drop=True)
    refused = table.loc[~readable, ["path", "class", "reason", "sha256"]].reset_index(drop=True)
    _stop_at_empty_classes(folder, good, refused)
    return good, refused


def list_images(folder: Path) -> list[tuple[str, Path]]:
    """List (class, file) for every image below ``folder/<class>/``, by its extension or, without one, by its start."""
    folders = _class_folders(folder)
    return [(name, path) for name, class_folder in folders.items() for path in find_images(class_folder)[0]]


def find_images(folder: Path) -> tuple[list[Path], Counter]:
    """Find every image below a folder, by its extension or, without one, by its start; count the others by extension.

    Hidden and system files are skipped uncounted.
    """
    files = list(_files(folder))
    others = Counter(path.suffix.lower() or "(no extension)" for path in files if not _is_photo(path))
    return [path for path in files if _is_photo(path)], others


def path_in(folder: Path, path: Path) -> str:
    """Write a file's path in the data folder, with slashes; bytes that are not UTF-8, as in old archives, escaped."""
    return path.relative_to(folder).as_posix().encode(errors="backslashreplace").decode()


def count_skipped(folder: Path) -> dict[str, int]:
    """Count the files below ``folder/<class>/`` that are no images, by extension, the most first."""
    counts = sum((find_images(class_folder)[1] for class_folder in _class_folders(folder).values()), Counter())
    return dict(counts.most_common())


@cache
def extensions() -> frozenset[str]:
    """List the extensions of the formats that Pillow reads, and HEIC's, whether its package is installed or not."""
    _learn_heic()
    formats = Image.registered_extensions()
    readable = set(Image.OPEN) - NO_PHOTOS | {"MPO"}
    return frozenset(suffix for suffix, name in formats.items() if name in readable) | HEIC


def _is_photo(path: Path) -> bool:
    """Tell by its extension whether a file is an image or, if it has none, by its first bytes."""
    if path.suffix:
        return path.suffix.lower() in extensions()
    _learn_heic()
    with suppress(Exception), Image.open(path, formats=[name for name in PHOTOS if name in Image.OPEN]):
        return True
    return False


def read_image(path: Path) -> Image.Image:
    """Open an image as every part of the pipeline sees it: upright, sRGB, 8 bits a channel, transparency on white.

    Colors are those that the file's ICC profile means, as browsers show them; without one, or where it is broken, sRGB.
    16-bit grey is scaled to 8 bits. Files do not say how many of the bits a camera filled, so white is taken from each
    image alone, as a model must later do with a single photo: the smallest of 255, 1023, 4095, 16383 and 65535 that
    holds all of its pixels. A photo that leaves three quarters of its range unused comes out brighter for it. Of
    animations and multi-page files the first frame is taken. Raises InputError with the reason when the file cannot be
    decoded completely.
    """
    _learn_heic()
    try:
        with Image.open(path) as image:
            # Pillow only warns up to twice its limit, and catching a warning is not safe in threads
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise Image.DecompressionBombError
            image.load()
            return _turn(_to_rgb(_to_srgb(image)), _orientation(image))
    except Image.DecompressionBombError:
        raise InputError(f"{relative(path)}: more than {Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller") from None
    except UnidentifiedImageError:
        if path.suffix.lower() in HEIC and not _learn_heic():
            raise InputError(
                f"{relative(path)}: photos in HEIC need one more package: pip install pillow-heif"
            ) from None
        cause = UNUSUAL_TIFF if _is_whole_tiff(path) else f"not an image; {likely_cause(path)}"
        raise InputError(f"{relative(path)}: {cause}") from None
    except Exception as error:  # Pillow's plugins raise all kinds
        raise InputError(f"{relative(path)}: cannot be decoded; {error}") from None


def _is_whole_tiff(path: Path) -> bool:
    """Tell whether a file begins as a TIFF and reaches as far as its table of contents."""
    start = path.read_bytes()[:16]
    place = start[8:] if b"+" in start[2:4] else start[4:8]  # in files beyond 4 GB, as some programs write all theirs
    order = "little" if start.startswith(b"II") else "big"
    return start[:4] in TIFF and int.from_bytes(place, order) < file_size(path)


def resize(image: Image.Image, size: tuple[int, int], interpolation: str) -> Image.Image:
    """Resize the whole picture, without a crop, to (width, height)."""
    return image.resize(size, Image.Resampling[interpolation.upper()])


def prepare(image: Image.Image, preprocessing: dict) -> np.ndarray:
    """Resize the whole picture, scale to [0, 1], normalize by `mean` and `std` per channel; → float32 (3, S, S).

    To the bit what torchvision's transforms return, without torch, which a process that runs ONNX does not load. The
    channels of a pixel are neighbours in memory, as theirs are.
    """
    small = resize(image, (preprocessing["image_size"],) * 2, preprocessing["interpolation"])
    pixels = np.array(small, dtype=np.float32)
    pixels *= np.float32(1 / 255)  # in place, which at 224 pixels takes half the time
    pixels -= np.array(preprocessing["mean"], dtype=np.float32)
    pixels /= np.array(preprocessing["std"], dtype=np.float32)
    return pixels.transpose(2, 0, 1)


@cache
def _learn_heic() -> bool:
    """Teach Pillow HEIC, the format of iPhones; → whether the package for it is installed."""
    with suppress(ImportError):  # whoever only predicts may have no such photos
        from pillow_heif import register_heif_opener

        register_heif_opener()
        return True
    return False


def read_pictures(folder: Path, index: pd.DataFrame, size: int = PICTURE) -> np.ndarray:
    """Read small square copies of all images of the index: uint8 (N, size, size, 3), 12 kB each at 64 pixels."""
    pictures = np.empty((len(index), size, size, 3), dtype=np.uint8)
    files = zip(index["path"], index["sha256"], strict=True)
    for position, picture in enumerate(parallel.run(partial(_shrink, folder, size), files, "read", THREADS)):
        pictures[position] = picture
    return pictures


def _shrink(folder: Path, size: int, file: tuple[str, str]) -> np.ndarray:
    """Read an image, given by path and sha256, as a square."""
    path, digest = file
    check_copy(folder / path, digest)
    return np.asarray(read_image(folder / path).resize((size, size), Image.Resampling.BILINEAR))


def _orientation(image: Image.Image) -> int:
    """Read how a camera was held, a key of TURNS; what is not in EXIF or cannot be read there is 1, upright."""
    with suppress(Exception):  # EXIF may be damaged in all ways, and its picture be sound
        return image.getexif().get(ORIENTATION, 1)
    return 1


def _turn(picture: Image.Image, orientation: int) -> Image.Image:
    """Turn a picture upright; Pillow's own function also writes EXIF anew, and fails where that is malformed."""
    return picture.transpose(TURNS[orientation]) if orientation in TURNS else picture


def _to_srgb(image: Image.Image) -> Image.Image:
    """Convert the colors of an image that comes with a profile of others, such as Display P3 of phones."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode.startswith(("I", "F")):  # what the levels of 16 bits mean is decided elsewhere
        return image
    with suppress(ImageCms.PyCMSError, OSError, ValueError):  # a broken profile is none
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return image
        if image.has_transparency_data:
            image = image.convert("RGBA")
        elif image.mode == "P":
            image = image.convert("RGB")
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, source, _srgb(), outputMode=mode)
    return image


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _to_rgb(image: Image.Image) -> Image.Image:
    if white := _white(image):
        grey = np.asarray(image, dtype=np.float64) * 255 / white
        negative = image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO  # Pillow forgets it
        image = Image.fromarray((255 - grey if negative else grey).round().astype(np.uint8))
    elif image.mode in ("F", "I"):
        raise ValueError("32-bit pixels have no agreed range; convert it to 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _white(image: Image.Image) -> int:
    """Return what white is in 16-bit grey, the smallest of WHITES that holds the image; 0 in any other image."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return min(white for white in WHITES if white >= np.asarray(image).max())
    return 0


def _describe(folder: Path, file: tuple[str, Path, int]) -> tuple:
    """Make a row of the table, COLUMNS, of a file, given by class, path and bytes."""
    class_name, path, size = file
    check_copy(path, size)
    name = path_in(folder, path)
    try:
        require(name == path.relative_to(folder).as_posix(), "its name is not UTF-8; rename it")
        picture = read_image(path)
    except InputError as error:
        reason = str(error).removeprefix(f"{relative(path)}: ")
        return name, class_name, 0, 0, "", sha256(path), "", reason
    pixels = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()
    with Image.open(path) as image:
        # of the file, as the picture is RGB in any case; of 16-bit grey with its white, so that EDA's table tells it
        mode = f"{image.mode}, white {white}" if (white := _white(image)) else image.mode
    if max(brightest for _, brightest in picture.getextrema()) < DARK:
        mode += BLACK
    return name, class_name, picture.width, picture.height, mode, sha256(path), pixels, ""


def _visible(entry: os.DirEntry) -> bool:
    return not entry.name.startswith(".") and entry.name not in SYSTEM_NAMES


def _leads_back(folder: Path, path: str) -> bool:
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(path))


def _class_folders(folder: Path) -> dict[str, Path]:
    """Map class names (NFC) to folders; two spellings of one class stop the run."""
    if not folder.is_dir():
        raise InputError(f"the data folder {relative(folder)} does not exist: {LAYOUT}")
    spellings = defaultdict(list)
    for entry in os.scandir(folder):
        if _visible(entry) and entry.is_dir() and not _leads_back(folder, entry.path):
            name = path_in(folder, Path(entry.path))
            require(name == entry.name, f"{relative(folder)}: the name of class {name} is not UTF-8; rename the folder")
            spellings[" ".join(unicodedata.normalize("NFC", name).casefold().split())].append(Path(entry.path))
    double = [" and ".join(ascii(path.name) for path in paths) for paths in spellings.values() if len(paths) > 1]
    if double:
        raise InputError(f"{relative(folder)} spells one class in two ways: {'; '.join(double)}. Merge the folders")
    if spellings and set(spellings) <= PARTS_OF_A_SPLIT:
        raise InputError(
            f"{relative(folder)} holds the parts of a split ({', '.join(sorted(spellings))}), not classes: {LAYOUT}; "
            "merge the parts, EDA.ipynb splits the data itself"
        )
    if len(spellings) < 2:
        found = sorted(entry.name for entry in os.scandir(folder))[:5]
        raise InputError(f"{relative(folder)} has {len(spellings)} class folders, found {found}: {LAYOUT}, two or more")
    return {unicodedata.normalize("NFC", path.name): path for (path,) in sorted(spellings.values())}


def _files(folder: Path, seen: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Walk a class folder, but for hidden files; a link back to a folder on the way or above it is not followed."""
    seen |= {os.path.realpath(folder)}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not _visible(entry):
            continue
        if entry.is_dir():
            if os.path.realpath(entry.path) not in seen and not _leads_back(folder, entry.path):
                yield from _files(Path(entry.path), seen)
        else:
            yield Path(entry.path)


def _stop_at_empty_classes(folder: Path, good: pd.DataFrame, refused: pd.DataFrame) -> None:
    empty = sorted(set(_class_folders(folder)) - set(good["class"]))
    if empty:
        bad_files = "".join(f"; {files}" for files in by_reason(refused.to_dict("records")))
        skipped = ", ".join(f"{suffix} {count}" for suffix, count in count_skipped(folder).items())
        raise InputError(
            f"{relative(folder)}: class folder {listing(empty)} has no readable image: add some or "
            f"remove the folder{bad_files}{'; skipped, as no images: ' if skipped else ''}{skipped}"
        )
