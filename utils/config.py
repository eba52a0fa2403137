"""Paths, seed, threads, and files that appear whole or not at all."""

import hashlib
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINTS = ROOT / "checkpoints"
SEED = 0
WRITING, DAY = ".writing-", 24 * 3600  # seconds
THREADS = os.cpu_count() or 1


class InputError(ValueError):
    """Something the user can mend: the message names the file, the cause and the next step."""

    def _render_traceback_(self) -> list[str]:
        """Show notebook users the sentence instead of a traceback (an IPython hook)."""
        return [f"{type(self).__name__}: {self}"]


def project_path(path: str | Path) -> Path:
    """Resolve a path as typed in a notebook: relative ones start at the project's root, wherever the kernel started."""
    return ROOT / Path(path).expanduser()


def run_folder(name: str = "") -> Path:
    """Create and return the folder that holds everything one run produces: ``checkpoints/<name>``."""
    folder = CHECKPOINTS / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def relative(path: str | Path) -> str:
    """Write a path the way a user would type it: from the project's root where it lies below it."""
    path = Path(path)
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


def require(condition: bool, sentence: str) -> None:
    """Stop with a sentence unless a condition, on a setting mostly, holds: InputError."""
    if not condition:
        raise InputError(sentence)


def listing(names: Iterable[object], limit: int = 8) -> str:
    """Write names in a row; of many, the first ones and how many more there are."""
    names = list(map(str, names))
    more = len(names) - limit
    return ", ".join(names if more < 2 else [*names[:limit], f"and {more} more"])


def seed_everything(seed: int = SEED) -> None:
    """Seed Python, NumPy and torch, and ask torch for deterministic kernels."""
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` in one step, and only when the block succeeds.

    A kill or a full disk in the middle leaves the previous file as it was. Raises InputError when the disk is full.
    """
    path = Path(path)
    remove_leftovers(path.parent)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=WRITING) as folder:
        temporary = Path(folder) / path.name
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        except Exception as error:
            if not (obstacle := writing_obstacle(Path(folder))):
                raise
            raise InputError(
                f"{relative(path)} cannot be written: {obstacle}. What was there before is untouched: make room on "
                "that disk and run this again"
            ) from error
        os.replace(temporary, path)


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


def sha256(path: str | Path) -> str:
    """Hash a file's bytes; empty when they cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def likely_cause(path: str | Path) -> str:
    """Say in a few words why a binary file cannot be read, judging by its size and first bytes."""
    path = Path(path)
    start = path.read_bytes()[:64]
    if not start:
        return "it is empty (0 bytes), as after an interrupted copy or download"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself (run `git lfs pull`)"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "it is a web page, as after a failed download"
    return f"it is truncated or not of this format ({path.stat().st_size:,} bytes)"
