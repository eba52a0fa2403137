"""How long a model takes: each in a process of its own, and all under the same conditions."""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from utils.compare_models.predictor import Predictor
from utils.config import SEED, THREADS
from utils.images import read_image

if TYPE_CHECKING:  # processes that are timed import this module and must stay small
    import pandas as pd

VISIT_MS = 40  # of calls per visit to a model, at least one call
CALLS = 200  # per visit, at most
RARER = 4  # batches are timed in one round of so many, since they take longer and decide nothing
PHOTO = "photo"  # the task of answering from a file: decode, prepare, run, argmax
ASLEEP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}  # for torch's idle threads


class Timing(NamedTuple):
    """What `measure_latency` found.

    `calls`: a row per call: model, task (batch size, or "photo"), round, ms. `processes`: a row per model: load_ms,
    cold_start_ms, peak_rss_mb after one image, peak_rss_mb_batch after all. `reference`: ms that the same fixed work
    took in each round, which shows how quiet the machine was.
    """

    calls: pd.DataFrame
    processes: pd.DataFrame
    reference: np.ndarray


def measure_latency(
    paths: dict[str, Path],
    photos: Sequence[Path],
    batch_sizes: Sequence[int],
    rounds: int = 20,
    threads: int = THREADS,
    preprocessing: dict | None = None,
) -> Timing:
    """Time each model on the same photos, each in a process of its own with equal threads that do not spin.

    In one process torch would wait for ONNX Runtime's idle threads (onnxruntime#13808). First each process starts while
    nothing else runs; then all stay loaded, and each round visits every task in random order and, within a task, the
    models in random order, one right after the other, so that a busy moment of the machine hits all alike. The first
    batch size and whole photos are timed in every round. `preprocessing` is for files that have none.
    """
    import pandas as pd

    from utils.progress import progress

    generator = np.random.default_rng(SEED)
    calls, reference, started, workers = [], [], {}, {}
    with ExitStack() as stack:
        stack.enter_context(_environment(ASLEEP))
        for name, path in progress(paths.items(), "start"):
            workers[name], started[name] = _start_process(stack, path, list(photos), threads, preprocessing)
        for number in progress(range(rounds), "latency"):
            tasks = [PHOTO, *(batch_sizes if number % RARER == 0 else batch_sizes[:1])]
            reference.append(_reference_ms())
            for task in generator.permutation(np.array(tasks, dtype=object)):
                for name in generator.permutation(list(paths)):
                    times = workers[name].submit(_time_task, task, number > 0).result()
                    calls += [(str(name), task, number, each) for each in times]
        for name, worker in workers.items():
            started[name]["peak_rss_mb_batch"] = worker.submit(_peak_memory).result()
    order = {PHOTO: 1e9} | dict(zip(batch_sizes, batch_sizes, strict=True)) | {name: i for i, name in enumerate(paths)}
    calls.sort(key=lambda row: (order[row[1]], order[row[0]]))
    processes = pd.DataFrame(started).T.rename_axis("model")
    return Timing(pd.DataFrame(calls, columns=["model", "task", "round", "ms"]), processes, np.array(reference))


def _start_process(stack: ExitStack, *arguments: object) -> tuple[ProcessPoolExecutor, dict[str, float]]:
    """Start a process that ends with the stack, and let it answer a photo; → it, and what that took."""
    begin = time.perf_counter()
    # spawn, as on Windows and macOS: a fork would copy this process's threads and memory
    worker = stack.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context("spawn")))
    found = worker.submit(_start, *arguments).result()
    return worker, found | {"cold_start_ms": (time.perf_counter() - begin) * 1e3}


def summarize(calls: pd.DataFrame) -> pd.DataFrame:
    """Reduce calls to a row per model and task: p50, p90, p99 in ms, and low and high, p50's interval over rounds."""
    import pandas as pd

    rows = []
    for (task, name), each in calls.groupby(["task", "model"], sort=False):
        low, high = median_interval(each.groupby("round")["ms"].median().to_numpy())
        rows.append((name, task, *np.percentile(each["ms"], [50, 90, 99]), low, high))
    table = pd.DataFrame(rows, columns=["model", "task", "p50", "p90", "p99", "low", "high"])
    return table.assign(low=table[["low", "p50"]].min(axis=1), high=table[["high", "p50"]].max(axis=1))


def latency_ratio(calls: pd.DataFrame, first: str, second: str, task: int | str) -> tuple[float, float, float]:
    """Compare two models round by round; → the median of second's time over first's, and its 95 % interval.

    In each round the lower quartile stands for a model: disturbances only ever add time, and not to all alike.
    """
    of_task = calls[calls["task"] == task]
    quick = of_task.groupby(["round", "model"])["ms"].quantile(0.25).unstack()
    ratios = (quick[second] / quick[first]).to_numpy()
    return float(np.median(ratios)), *median_interval(ratios)


def median_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of a median, from order statistics, whatever the distribution; the extremes where there are few.

    scipy's `quantile_test` (Conover 1999, section 3.2).
    """
    from scipy.stats import quantile_test

    low, high = quantile_test(values, p=0.5).confidence_interval(0.95)
    return float(np.min(values) if np.isnan(low) else low), float(np.max(values) if np.isnan(high) else high)


def read_input(path: Path, preprocessing: dict) -> np.ndarray:
    """Read a photo as `evaluation_transform` prepares it, with Pillow and numpy alone; → float32 (3, S, S).

    A process that runs ONNX has no torch. `tests/test_latency.py` holds the two together.
    """
    size = preprocessing["image_size"]
    resized = read_image(path).resize((size, size), Image.Resampling[preprocessing["interpolation"].upper()])
    mean, std = (np.array(preprocessing[name], np.float32) for name in ("mean", "std"))
    pixels = (np.asarray(resized, np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the processes started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _reference_ms() -> float:
    """Time a fixed piece of work."""
    numbers = np.random.default_rng(SEED).random(200_000)
    return _milliseconds(lambda: np.sort(numbers))


def _start(path: Path, photos: list[Path], threads: int, preprocessing: dict | None) -> dict[str, float]:
    """Load the model and answer the first photo; → ms that loading took, its libraries included, and memory so far."""
    global _predictor, _photos, _images
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start = time.perf_counter()
    _predictor, _photos, _images = Predictor(path, threads, preprocessing), photos, None
    load_ms = (time.perf_counter() - start) * 1e3
    _answer(photos[0])
    return {"load_ms": load_ms, "peak_rss_mb": _peak_memory()}


def _end_with_parent() -> None:
    """End this process when the notebook's is killed: the pool itself would wait for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _answer(photo: Path) -> int:
    return int(_predictor.run(read_input(photo, _predictor.preprocessing)[None])[0].argmax())


def _time_task(task: int | str, warm: bool) -> list[float]:
    """Time calls in ms: of a batch of so many images, or from photo to answer."""
    global _images
    if task == PHOTO:
        numbers = iter(range(CALLS + 1))
        return _time(lambda: _answer(_photos[next(numbers) % len(_photos)]), warm)
    if _images is None:
        _images = np.stack([read_input(photo, _predictor.preprocessing) for photo in _photos])
    batch = np.resize(_images, (task, *_images.shape[1:]))
    return _time(lambda: _predictor.run(batch), warm)


def _time(call: Callable[[], object], warm: bool) -> list[float]:
    """Time a call again and again; one more before warms caches up, unless they are `warm` and it takes long anyway."""
    times = [_milliseconds(call)]
    if not warm or times[0] < VISIT_MS:
        times = []
    while len(times) < CALLS and sum(times) < VISIT_MS:
        times.append(_milliseconds(call))
    return times


def _milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def _peak_memory() -> float:
    """Return this process's peak resident memory in MB."""
    if os.name == "nt":
        import psutil

        return psutil.Process().memory_info().peak_wset / 1e6
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    # Linux hands getrusage's peak down from the parent process; this one starts with the program
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))[1]) / 1e3
