"""Which files of a data folder are images, and what its folders say of each: its class, and its part of a split."""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from utils.config import listing, relative, require

HEIC = {".heic", ".heif"}
NO_PHOTOS = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}  # Pillow knows them and opens none by itself
PHOTOS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # what a file without a suffix may be
SYSTEM_NAMES = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "Thumbs.db", "desktop.ini"}
EXPECTED = "expected one folder per class with images in it, as in data/train/apple/*.jpg"
PART = re.compile(  # as in training_set, seg_train, val, test-images
    r"(?:.*[\W_])?(?:(?P<train>train(?:ing)?)|(?P<valid>val(?:id(?:ation)?)?|dev)|(?P<test>test(?:ing)?))"
    r"[\W_]*(?:set|data|dataset|images?|split)?[\W_\d]*",
    re.IGNORECASE,
)
MASKS = {"annotation", "annotations", "gt", "mask", "masks", "segmentation", "segmentations"}
NO_CLASSES = MASKS | {"image", "images", "img", "imgs", "label", "labels", "photos"}  # what sorts files, not photos


class Entry(NamedTuple):
    """An image: its class, the part (train, valid, test) of a given split, and why it is left out, if it is."""

    path: Path
    label: str
    part: str = ""
    reason: str = ""


def list_images(folder: Path, split: str | None = None) -> list[Entry]:
    """List every image below a data folder, with its class and part by ``<class>/`` or ``<part>/<class>/``.

    Refused are images in no class folder and, by their folder's name, masks. With the `split` "absent", all folders are
    classes. Raises InputError where they are neither classes nor parts, and where a class has no image.
    """
    classes, entries = _class_folders(folder, split), []
    for path in find_images(folder)[0]:
        place = next((parent for parent in path.parents if parent in classes), None)
        label, part = classes.get(place, ("", ""))
        below = {name.casefold() for name in path.relative_to(place or path.parent).parts[:-1]}
        reason = "" if place else "it lies in no class folder"
        if below & MASKS and split != "absent":
            reason = "a mask, by its folder's name; SPLIT=absent takes it for a photo"
        entries.append(Entry(path, label, part, reason))
    empty = {name for name, _ in classes.values()} - {entry.label for entry in entries}
    held = {place.name: find_images(place)[1] for place, (name, _) in classes.items() if name in empty}
    found = [f"{place} holds {', '.join(others) or 'nothing'}" for place, others in held.items()]
    what = f"class folder {listing(sorted(empty))} has no readable image ({listing(found)})"
    require(not empty, f"{relative(folder)}: {what}: add some, remove the folder, or move it elsewhere")
    return entries


def find_images(folder: Path) -> tuple[list[Path], Counter]:
    """Find every image below a folder, by its extension or, without one, its start; count others by extension."""
    files = {path: _is_photo(path) for path in _files(folder)}
    others = Counter(path.suffix.lower() or "(no extension)" for path, photo in files.items() if not photo)
    return [path for path, photo in files.items() if photo], others


def path_in(folder: Path, path: Path) -> str:
    """Write a file's path in the data folder, with slashes; bytes that are not UTF-8, as in old archives, escaped."""
    return path.relative_to(folder).as_posix().encode(errors="backslashreplace").decode()


def _class_folders(folder: Path, split: str | None) -> dict[Path, tuple[str, str]]:
    """Map the class folders of a data folder to class (NFC) and part, which is empty where nothing is parted."""
    require(folder.is_dir(), f"the data folder {relative(folder)} does not exist: {EXPECTED}")
    outer = _subfolders(folder)
    parts = {folder: ""} if split == "absent" else _parts(folder, outer, split)
    places = {place: part for holder, part in parts.items() for place in _subfolders(holder)}
    for place in places:
        name = path_in(place.parent, place)
        require(name == place.name, f"{relative(folder)}: the name of class {name} is not UTF-8; rename the folder")
    stop_at_two_spellings(folder, {place.name for place in places})
    found, hint = sorted(entry.name for entry in os.scandir(folder))[:5], ""
    if len(outer) == 1 and _subfolders(outer[0]):
        hint = f'. If the classes, or parts of a split, are in {outer[0].name}, give --data "{relative(outer[0])}"'
    elif not outer:
        hint = f'. If it is a class, give --data "{relative(folder.parent)}"; if a table has the classes, --labels'
    what = f"{relative(folder)} has {len(places)} class folders, found {found}"
    require(len({place.name for place in places}) > 1, f"{what}: {EXPECTED}, two or more{hint}")
    return {place: (unicodedata.normalize("NFC", place.name), part) for place, part in places.items()}


def _parts(folder: Path, outer: list[Path], split: str | None) -> dict[Path, str]:
    """Find what holds class folders, and which part of a split it is: `folder` itself and none, or those in it."""
    named = {place: match.lastgroup for place in outer if (match := PART.fullmatch(place.name))}
    parts = {place: part for place, part in named.items() if _subfolders(place)}
    others = [place.name for place in outer if place not in parts]
    names, where = listing(place.name for place in parts or named), relative(folder)
    if parts:
        what = f"{where} holds {names}, by the name parts of a split, and beside them {listing(others)}"
        give = f'give one part, --data "{relative(next(iter(parts)))}"'
        require(not others, f"{what}: move what is no part out, or {give}, or, if all are classes, SPLIT=absent")
        return {_unwrapped(place): part for place, part in parts.items()}
    what = f"{where} holds the parts of a split ({names}) without class folders in them: {EXPECTED}"
    require(not named or len(named) < len(outer), f"{what}; if a table has the classes, give it: --labels FILE")
    inner = [{path.name.casefold() for path in _subfolders(place)} - NO_CLASSES for place in outer]
    most = max(inner, key=len, default=set())
    if len(outer) < 2 or any(len(own) < 2 or not own <= most for own in inner):
        return {folder: ""}
    what = f"{where}: {listing(place.name for place in outer)} hold folders of the same names, {listing(sorted(most))}"
    pool = "If these are the classes, add -p SPLIT=ours, which pools them, or call the outer ones train and test"
    require(split == "ours", f"{what}. {pool}. If the outer ones are the classes, add -p SPLIT=absent")
    return dict.fromkeys(outer, "")


def _unwrapped(place: Path) -> Path:
    """Step into a folder that holds nothing but one of its own name, as some archives do."""
    inner = _subfolders(place)
    return inner[0] if [path.name for path in inner] == [place.name] else place


def stop_at_two_spellings(where: Path, names: Iterable[str]) -> None:
    """Raise InputError where names of classes differ by spaces, letter case or Unicode's form alone."""
    spellings = defaultdict(list)
    for name in sorted(names):
        spellings[" ".join(unicodedata.normalize("NFC", name).casefold().split())].append(ascii(name))
    double = [" and ".join(alike) for alike in spellings.values() if len(alike) > 1]
    require(not double, f"{relative(where)} spells one class in two ways: {'; '.join(double)}. Call them the same")


@cache
def extensions() -> frozenset[str]:
    """List the extensions of the formats that Pillow reads, and HEIC's, whether its package is installed or not."""
    learn_heic()
    formats = Image.registered_extensions()
    readable = set(Image.OPEN) - NO_PHOTOS | {"MPO"}
    return frozenset(suffix for suffix, name in formats.items() if name in readable) | HEIC


@cache
def learn_heic() -> bool:
    """Teach Pillow HEIC, the format of iPhones; → whether the package for it is installed."""
    with suppress(ImportError):  # whoever only predicts may have no such photos
        from pillow_heif import register_heif_opener

        register_heif_opener()
        return True
    return False


def _is_photo(path: Path) -> bool:
    """Tell by its extension whether a file is an image or, if it has none, by its first bytes."""
    if path.suffix:
        return path.suffix.lower() in extensions()
    learn_heic()
    with suppress(Exception), Image.open(path, formats=[name for name in PHOTOS if name in Image.OPEN]):
        return True
    return False


def _subfolders(folder: Path) -> list[Path]:
    """List the folders in a folder, but for hidden ones and links back to it or above it."""
    entries = [entry for entry in os.scandir(folder) if _visible(entry) and entry.is_dir()]
    return sorted(Path(entry.path) for entry in entries if not _leads_back(folder, entry.path))


def _files(folder: Path, seen: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Walk a folder, but for hidden files; a link back to a folder on the way or above it is not followed."""
    seen |= {os.path.realpath(folder)}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not _visible(entry):
            continue
        if entry.is_dir():
            if os.path.realpath(entry.path) not in seen and not _leads_back(folder, entry.path):
                yield from _files(Path(entry.path), seen)
        else:
            yield Path(entry.path)


def _visible(entry: os.DirEntry) -> bool:
    return not entry.name.startswith(".") and entry.name not in SYSTEM_NAMES


def _leads_back(folder: Path, path: str) -> bool:
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(path))
