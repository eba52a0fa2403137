"""Paths, seed, threads, and files that appear whole or not at all."""

import hashlib
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINTS = ROOT / "checkpoints"
SEED = 0
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

    A kill or a full disk in the middle leaves the previous file as it was.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)


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
