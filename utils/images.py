"""The one way to open an image."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from utils import parallel
from utils.config import THREADS, InputError, by_reason, listing, relative, require
from utils.files import file_size, likely_cause, sha256
from utils.layout import HEIC, Entry, learn_heic, list_images, path_in
from utils.parallel import check_copy

if TYPE_CHECKING:  # utils.predict opens images without pandas
    import pandas as pd

COLUMNS = ["path", "class", "part", "width", "height", "mode", "sha256", "pixels", "reason"]
DARK, BLACK = 32, ", nearly black"  # what is added to the mode of an image without a brighter value, of 255
PICTURE = 64  # pixels a side of the small copies that the data are looked at with
WHITES = (2**8 - 1, 2**10 - 1, 2**12 - 1, 2**14 - 1, 2**16 - 1)  # of sensors whose data are kept in 16 bits
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how one begins
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


def scan_folder(folder: Path, entries: Sequence[Entry] | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Decode every image of a folder once and tell good files from bad ones.

    `entries` are its images and their classes; None: as its folders say. Returns the index (path in `folder`, class,
    part of a given split, width, height, mode, sha256 of the file, and pixels, a hash that is equal for exact copies),
    sorted by class and name, and the refused files (path, class, reason, sha256). Raises InputError, naming all at
    once, when a class is left without images.
    """
    import pandas as pd

    entries = list_images(folder) if entries is None else entries
    files = [(entry, file_size(entry.path)) for entry in entries]
    table = pd.DataFrame(parallel.run(partial(_describe, folder), files, "decode", THREADS), columns=COLUMNS)
    # not by path: the same photos are split alike, whatever their folders are
    table["name"] = [entry.path.name for entry in entries]
    table = table.sort_values(["class", "name", "path"], ignore_index=True).drop(columns="name")
    readable = table["reason"] == ""
    good = table[readable].drop(columns="reason").reset_index(drop=True)
    refused = table.loc[~readable, ["path", "class", "reason", "sha256"]].reset_index(drop=True)
    empty = sorted(set(table["class"]) - {""} - set(good["class"]))
    what = f"class folder {listing(empty)} has no readable image: add some or remove the folder"
    require(not empty, "; ".join([f"{relative(folder)}: {what}", *by_reason(refused.to_dict("records"))]))
    return good, refused


def read_image(path: Path) -> Image.Image:
    """Open an image as every part of the pipeline sees it: upright, sRGB, 8 bits a channel, transparency on white.

    Colors are those that the file's ICC profile means, as browsers show them; without one, or where it is broken, sRGB.
    White of 16-bit grey is taken from each image alone, as files do not say how many bits a camera filled: the smallest
    of 255, 1023, 4095, 16383 and 65535 that holds all pixels. Of animations and multi-page files the first frame is
    taken. Raises InputError with the reason when the file cannot be decoded completely.
    """
    learn_heic()
    try:
        with Image.open(path) as image:
            # Pillow only warns up to twice its limit, and catching a warning is not safe in threads
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise Image.DecompressionBombError
            image.load()
            return _turn(_to_rgb(_to_srgb(image)), image)
    except Image.DecompressionBombError:
        raise InputError(f"{relative(path)}: more than {Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller") from None
    except UnidentifiedImageError:
        cause = f"not an image; {likely_cause(path)}"
        if path.suffix.lower() in HEIC and not learn_heic():
            cause = "photos in HEIC need one more package: pip install pillow-heif"
        elif path.read_bytes()[:4] in TIFF:
            cause = "a TIFF that is cut off, or of a kind that Pillow does not read; save it as RGB or grey"
        raise InputError(f"{relative(path)}: {cause}") from None
    except Exception as error:  # Pillow's plugins raise all kinds
        raise InputError(f"{relative(path)}: cannot be decoded; {error}") from None


def resize(image: Image.Image, size: tuple[int, int], interpolation: str) -> Image.Image:
    """Resize the whole picture, without a crop, to (width, height)."""
    return image.resize(size, Image.Resampling[interpolation.upper()])


def prepare(image: Image.Image, preprocessing: dict) -> np.ndarray:
    """Resize the whole picture, scale to [0, 1], normalize by `mean` and `std` per channel; → float32 (3, S, S).

    To the bit, and in memory, what torchvision's transforms return, without torch.
    """
    small = resize(image, (preprocessing["image_size"],) * 2, preprocessing["interpolation"])
    pixels = np.array(small, dtype=np.float32)
    pixels *= np.float32(1 / 255)  # in place, which at 224 pixels takes half the time
    pixels -= np.array(preprocessing["mean"], dtype=np.float32)
    pixels /= np.array(preprocessing["std"], dtype=np.float32)
    return pixels.transpose(2, 0, 1)


def read_pictures(folder: Path, index: pd.DataFrame, size: int = PICTURE) -> np.ndarray:
    """Read small square copies of all images of the index: uint8 (N, size, size, 3), 12 kB each at 64 pixels."""
    pictures = np.empty((len(index), size, size, 3), dtype=np.uint8)
    files = zip(index["path"], index["sha256"], strict=True)
    for position, picture in enumerate(parallel.run(partial(_shrink, folder, size), files, "read", THREADS)):
        pictures[position] = picture
    return pictures


def _shrink(folder: Path, size: int, file: tuple[str, str]) -> np.ndarray:
    path, digest = file
    check_copy(folder / path, digest)
    return np.asarray(read_image(folder / path).resize((size, size), Image.Resampling.BILINEAR))


def _turn(picture: Image.Image, image: Image.Image) -> Image.Image:
    """Turn a picture as its image's EXIF says; Pillow's own function fails where that is malformed."""
    orientation = None
    with suppress(Exception):  # EXIF may be damaged in all ways, and its picture be sound
        orientation = image.getexif().get(ORIENTATION)
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
    """Return what white is in 16-bit grey; 0 in any other image."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return min(white for white in WHITES if white >= np.asarray(image).max())
    return 0


def _describe(folder: Path, file: tuple[Entry, int]) -> tuple:
    """Make a row of the table, COLUMNS, of a file and its bytes."""
    (path, label, part, reason), size = file
    check_copy(path, size)
    name, digest = path_in(folder, path), sha256(path)
    try:
        require(not reason, reason)
        require(name == path.relative_to(folder).as_posix(), "its name is not UTF-8; rename it")
        picture = read_image(path)
    except InputError as error:
        return name, label, part, 0, 0, "", digest, "", str(error).removeprefix(f"{relative(path)}: ")
    pixels = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()
    with Image.open(path) as image:
        # of the file, as the picture is RGB in any case; of 16-bit grey with its white, so that EDA's table tells it
        mode = f"{image.mode}, white {white}" if (white := _white(image)) else image.mode
    if max(brightest for _, brightest in picture.getextrema()) < DARK:
        mode += BLACK
    return name, label, part, picture.width, picture.height, mode, digest, pixels, ""
