"""Files that appear whole or not at all, and results that are remembered between runs."""

import atexit
import filecmp
import hashlib
import inspect
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np

from utils.config import InputError, relative

WRITING = ".writing-"  # how the folders begin in which files are written
DAY = 24 * 3600  # seconds
FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")  # how a cell begins that a spreadsheet would not show as it is (OWASP)
LIBRARIES = ("numpy", "onnx", "onnxruntime", "scikit-learn", "torch")


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` in one step, and only when the block succeeds.

    A kill or a full disk in the middle leaves the previous file as it was. Raises InputError when the disk is full or
    nobody may write there.
    """
    path = Path(path)
    failed = f"{relative(path)} cannot be written"
    try:
        remove_leftovers(path.parent)
        place = tempfile.TemporaryDirectory(dir=path.parent, prefix=WRITING)
    except OSError as error:
        raise InputError(f"{failed} ({error.strerror}): give yourself the right to, or another place") from None
    with place as folder:
        temporary = Path(folder) / path.name
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        except Exception as error:
            if not (obstacle := writing_obstacle(Path(folder))):
                raise
            advice = "what was there before is untouched: make room on that disk and run this again"
            raise InputError(f"{failed}: {obstacle}; {advice}") from error
        os.replace(temporary, path)


def copy_numbered(source: Path, folder: Path, temporary: Path) -> bool:
    """Copy a file into a folder, whole, unless it is there already; → whether it was copied.

    Nothing is overwritten: a.jpg becomes a (2).jpg. The folder `temporary` is on the same disk.
    """
    folder.mkdir(exist_ok=True)
    target, number = folder / source.name, 1
    while os.path.lexists(target):
        if filecmp.cmp(source, target, shallow=False):
            return False
        number += 1
        target = folder / f"{source.stem} ({number}){source.suffix}"
    os.replace(shutil.copy2(source, temporary), target)
    return True


def scratch_folder() -> Path:
    """Make a folder for files that nobody needs once Python ends: it is removed then."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove what runs that were killed while writing left, once no run can still be writing it: after a day."""
    for leftover in folder.glob(f"{WRITING}*"):
        with suppress(FileNotFoundError):  # two runs may clean up at once
            if time.time() - leftover.stat().st_mtime > DAY:
                shutil.rmtree(leftover, ignore_errors=True)


def writing_obstacle(folder: Path) -> str:
    """Say why not even a megabyte can be written: torch and ONNX Runtime do not tell a full disk from other faults."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""


def as_cell(text: str) -> str:
    """Let a spreadsheet take a text that it would compute (CSV injection) for a text, by an apostrophe before it."""
    return f"'{text}" if text.startswith(FORMULA) else text


def from_cell(cell: str) -> str:
    """Undo `as_cell`."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA) else cell


def sha256(path: str | Path) -> str:
    """Hash a file's bytes; empty when they cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def file_size(path: Path) -> int:
    """Return a file's bytes; -1 when there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def likely_cause(path: Path) -> str:
    """Say in a few words why a binary file cannot be read, judging by its size and first bytes."""
    start = path.read_bytes()[:64]
    if not start:
        return "it is empty (0 bytes), as after an interrupted copy or download"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself (run `git lfs pull`)"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "it is a web page, as after a failed download"
    return f"it is truncated or not of this format ({path.stat().st_size:,} bytes)"


def remembered(cache: Path, parts: Sequence[object], compute: Callable[[], object]) -> object:
    """Return what an earlier run found from the same parts, or compute it and write it down in the JSON file `cache`.

    A part is known by its bytes (a file), by its source and the settings that it reads (a function, such as one defined
    in a notebook), or by its text. All code in utils and the versions of what computes count, too.
    """
    key = cache_key(parts)
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or damaged: then it is written anew
        known = {}
    if key not in known:
        known[key] = compute()
        with whole_file(cache) as temporary:
            temporary.write_text(json.dumps(known, indent=1, ensure_ascii=False), encoding="utf-8")
    return known[key]


def remembered_arrays(cache: Path, parts: Sequence[object], compute: Callable[[], dict]) -> dict[str, np.ndarray]:
    """Do the same for arrays by name, in an .npz file that holds the last result alone, and its `key`."""
    key = cache_key(parts)
    try:
        with np.load(cache) as file:
            known = {name: file[name] for name in file.files}
    except Exception:  # none yet, or damaged: numpy raises zip, EOF and value errors alike
        known = {}
    if str(known.pop("key", "")) == key:
        return known
    arrays = compute()
    with whole_file(cache) as temporary, temporary.open("wb") as file:
        np.savez(file, key=key, **arrays)
    return arrays


def cache_key(parts: Sequence[object]) -> str:
    """Hash the parts that a result depends on, as `remembered` knows them."""
    code = sorted(Path(__file__).parent.rglob("*.py"))
    texts = [f"{name} {version(name)}" for name in LIBRARIES] + [_text(part) for part in (*parts, *code)]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _text(part: object) -> str:
    if isinstance(part, Path):
        return sha256(part)
    if not inspect.isfunction(part):
        return repr(part)
    settings = {name: value for name, value in inspect.getclosurevars(part).globals.items() if name.isupper()}
    return f"{inspect.getsource(part)}{settings}"
