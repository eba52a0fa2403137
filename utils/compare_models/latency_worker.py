"""The process in which one model file is timed; it imports neither torch, unless the file needs it, nor pandas."""

import itertools
import multiprocessing
import os
import re
import sys
import threading
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from utils.compare_models.predictor import Predictor
from utils.config import THREADS
from utils.images import prepare, read_image
from utils.stopwatch import visit

PHOTO = "photo"  # the task from a file to a prediction: decode, prepare, run, argmax
VISIT_MS = 40  # of calls in each visit: the verdict rests on these
PASSIVE_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}  # of torch's threads


def start(path: Path, photos: Sequence[Path], preprocessing: dict | None) -> dict[str, float]:
    """Load the model and predict the first photo; → ms that loading took, its libraries included, and memory so far."""
    global _predictor, _photos
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(PASSIVE_WAITING)  # read when torch is imported, which is below
    begin = time.perf_counter()
    _predictor, _photos = Predictor(path, THREADS, preprocessing), photos
    load_ms = (time.perf_counter() - begin) * 1e3
    predict(photos[0])
    return {"load_ms": load_ms, "peak_rss_mb": peak_memory()}


def _end_with_parent() -> None:
    """End when the process that measures is killed: the pool itself would wait for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def predict(photo: Path) -> int:
    """Take a photo from the disk; → the position of its class."""
    return int(_predictor.run(read_input(photo, _predictor.preprocessing)[None])[0].argmax())


@cache
def prepared_photos() -> np.ndarray:
    """Give the photos as the model takes them: float32 (N, 3, S, S)."""
    return np.stack([read_input(photo, _predictor.preprocessing) for photo in _photos])


def time_task(task: int | str, warm: bool) -> list[float]:
    """Time calls in ms: of a batch of so many images, or from photo to prediction."""
    if task == PHOTO:
        photos = itertools.cycle(_photos)
        return visit(lambda: predict(next(photos)), warm, VISIT_MS)
    batch = np.resize(prepared_photos(), (task, *prepared_photos().shape[1:]))
    return visit(lambda: _predictor.run(batch), warm, VISIT_MS)


def read_input(path: Path, preprocessing: dict) -> np.ndarray:
    """Read a photo as the model takes it; → float32 (3, S, S)."""
    return np.ascontiguousarray(prepare(read_image(path), preprocessing))


def peak_memory() -> float:
    """Return this process's peak resident memory in MB."""
    if os.name == "nt":
        import psutil

        return psutil.Process().memory_info().peak_wset / 1e6
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    # Linux hands getrusage's peak down from the parent process; this one starts with the program
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))[1]) / 1e3
