"""The process in which one model file is timed; it imports neither torch, unless the file needs it, nor pandas."""

import itertools
import multiprocessing
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from utils.compare_models.predictor import Predictor
from utils.config import THREADS
from utils.images import read_image

PHOTO = "photo"  # the task of answering from a file: decode, prepare, run, argmax
VISIT_MS = 40  # of calls per visit to a model, at least one call
MAX_CALLS = 200  # per visit
PASSIVE_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}  # of torch's threads


class TimedModel:
    """A model file and the photos that it answers."""

    def __init__(self, path: Path, photos: Sequence[Path], preprocessing: dict | None):
        self.predictor, self.photos = Predictor(path, THREADS, preprocessing), photos

    @cached_property
    def images(self) -> np.ndarray:
        """The photos as the model takes them: float32 (N, 3, S, S)."""
        return np.stack([read_input(photo, self.predictor.preprocessing) for photo in self.photos])

    def answer(self, number: int = 0) -> int:
        """Take the photo of this number, counted round and round, and answer with the position of its class."""
        photo = self.photos[number % len(self.photos)]
        return int(self.predictor.run(read_input(photo, self.predictor.preprocessing)[None])[0].argmax())

    def time_task(self, task: int | str, warm: bool) -> list[float]:
        """Time calls in ms: of a batch of so many images, or from photo to answer."""
        if task == PHOTO:
            numbers = itertools.count()
            return time_calls(lambda: self.answer(next(numbers)), warm)
        batch = np.resize(self.images, (task, *self.images.shape[1:]))
        return time_calls(lambda: self.predictor.run(batch), warm)


def start(path: Path, photos: Sequence[Path], preprocessing: dict | None) -> dict[str, float]:
    """Load the model and answer the first photo; → ms that loading took, its libraries included, and memory so far."""
    global _model
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(PASSIVE_WAITING)  # read when torch is imported, which is below
    begin = time.perf_counter()
    _model = TimedModel(path, photos, preprocessing)
    load_ms = (time.perf_counter() - begin) * 1e3
    _model.answer()
    return {"load_ms": load_ms, "peak_rss_mb": peak_memory()}


def _end_with_parent() -> None:
    """End when the process that measures is killed, which otherwise would leave this one waiting for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def time_task(task: int | str, warm: bool) -> list[float]:
    """Time a task with the model that `start` loaded; → ms of each call."""
    return _model.time_task(task, warm)


def time_calls(call: Callable[[], object], warm: bool) -> list[float]:
    """Time a call again and again; one more before warms caches up, unless they are `warm` and it takes long anyway."""
    times = [milliseconds(call)]
    if not warm or times[0] < VISIT_MS:
        times = []
    while len(times) < MAX_CALLS and sum(times) < VISIT_MS:
        times.append(milliseconds(call))
    return times


def milliseconds(call: Callable[[], object]) -> float:
    """Time one call."""
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e3


def read_input(path: Path, preprocessing: dict) -> np.ndarray:
    """Read a photo as `evaluation_transform` prepares it, with Pillow and numpy alone; → float32 (3, S, S).

    A process that runs ONNX has no torch. `tests/test_latency.py` holds the two together.
    """
    size = preprocessing["image_size"]
    resized = read_image(path).resize((size, size), Image.Resampling[preprocessing["interpolation"].upper()])
    pixels = np.asarray(resized, np.float32) / np.float32(255)
    normalized = (pixels - np.array(preprocessing["mean"], np.float32)) / np.array(preprocessing["std"], np.float32)
    return np.ascontiguousarray(normalized.transpose(2, 0, 1))


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
