"""How long a model takes: each in a process of its own, and all under the same conditions.

These processes import this module, too, and their memory is measured: pandas is imported only where tables are made.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import re
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from utils import stopwatch
from utils.compare_models.predictor import Predictor
from utils.config import SEED, THREADS
from utils.images import prepare, read_image
from utils.parallel import progress

if TYPE_CHECKING:
    import pandas as pd

PHOTO = "photo"  # the task from a file to a prediction: decode, prepare, run, argmax
VISIT_MS = 40  # of calls in each visit: the verdict rests on these
BATCH_ROUNDS = 2  # of larger batches, which take long and decide nothing
FEWEST_ROUNDS = 10  # before the ratio may be called clear
CLEAR = 0.05  # width of the ratio's interval
BUSY = 1.2  # noise from which on times are not sure
CALL = ["model", "task", "round", "ms"]
PASSIVE_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}  # of torch's threads


class Timing(NamedTuple):
    """What `measure_latency` found."""

    calls: pd.DataFrame  # a row per call: model, task (batch size, or "photo"), round, ms
    processes: pd.DataFrame  # per model: load_ms, cold_start_ms, peak_rss_mb (one image), peak_rss_mb_batch (all)
    reference: np.ndarray  # ms that the same fixed work took in each round

    def noise(self) -> dict:
        """Say how much longer the fixed work took in the slowest tenth of rounds (1.1: 10 %), and if that is `busy`."""
        noise = float(np.percentile(self.reference, 90) / np.median(self.reference))
        return {"noise": round(noise, 3), "busy": noise >= BUSY}


def measure_latency(
    paths: dict[str, Path],
    photos: Sequence[Path],
    batch_sizes: Sequence[int],
    rounds: int = 20,
    preprocessing: dict | None = None,
    pair: tuple[str, str] | None = None,
) -> Timing:
    """Time each model on the same photos, each in a process of its own with equal threads that do not spin.

    In one process torch would wait for ONNX Runtime's idle threads (onnxruntime#13808). Each process starts while
    nothing else runs; then each round visits the tasks, and within a task the models, in random order, so that a busy
    moment of the machine hits all alike. The first batch size and whole photos are timed in every round, larger batches
    in two. Rounds end early once the ratio of a `pair` of models is clear. `preprocessing` is for files without.
    """
    import pandas as pd

    generator, numbers = random.Random(SEED), np.random.default_rng(SEED).random(200_000)
    rows, reference, workers, started = [], [], {}, {}
    with ExitStack() as stack:
        for name in progress(paths, "start"):
            begin = time.perf_counter()
            # spawn, as on Windows and macOS: a fork would copy this process's threads and memory
            workers[name] = stack.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context("spawn")))
            started[name] = workers[name].submit(start, paths[name], list(photos), preprocessing).result()
            started[name]["cold_start_ms"] = (time.perf_counter() - begin) * 1e3
        for number in progress(range(rounds), "latency"):
            reference.append(stopwatch.milliseconds(partial(np.sort, numbers)))
            tasks = [*(batch_sizes if number < BATCH_ROUNDS else batch_sizes[:1]), PHOTO]
            for task in generator.sample(tasks, len(tasks)):
                visits = {name: partial(_visit, worker, task, number > 0) for name, worker in workers.items()}
                for name, times in stopwatch.time_round(visits, generator).items():
                    rows += [(name, task, number, ms) for ms in times]
            calls = pd.DataFrame(rows, columns=CALL)
            if pair and number + 1 >= FEWEST_ROUNDS and is_clear(*latency_ratio(calls, *pair, batch_sizes[0])):
                break
        for name, worker in workers.items():
            started[name]["peak_rss_mb_batch"] = worker.submit(peak_memory).result()
    order = [*batch_sizes, PHOTO]  # which tables keep
    calls = calls.sort_values("task", key=lambda tasks: tasks.map(order.index), kind="stable")
    return Timing(calls, pd.DataFrame(started).T.rename_axis("model"), np.array(reference))


def _visit(worker: ProcessPoolExecutor, task: int | str, warm: bool) -> list[float]:
    return worker.submit(time_task, task, warm).result()


def summarize(calls: pd.DataFrame) -> pd.DataFrame:
    """Reduce calls to a row per task and model: p50, p90, p99 in ms, and low and high, p50's interval over rounds."""
    import pandas as pd

    rows = []
    for (task, name), chosen in calls.groupby(["task", "model"], sort=False):
        p50, p90, p99 = np.percentile(chosen["ms"], [50, 90, 99])
        low, high = stopwatch.median_interval(chosen.groupby("round")["ms"].median().to_numpy())
        rows.append((name, task, p50, p90, p99, min(low, p50), max(high, p50)))
    return pd.DataFrame(rows, columns=["model", "task", "p50", "p90", "p99", "low", "high"])


def latency_ratio(calls: pd.DataFrame, first: str, second: str, task: int | str) -> tuple[float, float, float]:
    """Compare two models round by round; → the median of second's time over first's, and its 95 % interval."""
    of_task = calls[calls["task"] == task]
    quick = of_task.groupby(["round", "model"])["ms"].quantile(stopwatch.QUICK / 100).unstack()
    return stopwatch.ratio(quick[first].to_numpy(), quick[second].to_numpy())


def is_clear(ratio: float, low: float, high: float) -> bool:
    """Tell whether the interval of two models' ratio is narrow: 5 % wide, or half of its distance from 1."""
    return high - low <= max(CLEAR, abs(1 - ratio) / 2)


# --- in the process of one model


def start(path: Path, photos: Sequence[Path], preprocessing: dict | None) -> dict[str, float]:
    """Load the model and predict the first photo; → ms that loading took, its libraries included, and memory so far."""
    global _predictor, _photos
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(PASSIVE_WAITING)  # read when torch is imported, which is below
    begin = time.perf_counter()
    _predictor = Predictor(path, THREADS, preprocessing)
    _photos = photos
    load_ms = (time.perf_counter() - begin) * 1e3
    predict(photos[0])
    return {"load_ms": load_ms, "peak_rss_mb": peak_memory()}


def _end_with_parent() -> None:
    """End when the process that measures is killed: the pool itself would wait for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def time_task(task: int | str, warm: bool) -> list[float]:
    """Time calls in ms: of a batch of so many images, or from photo to prediction."""
    if task == PHOTO:
        photos = itertools.cycle(_photos)
        return stopwatch.visit(lambda: predict(next(photos)), warm, VISIT_MS)
    batch = np.resize(_inputs(), (task, *_inputs().shape[1:]))
    return stopwatch.visit(lambda: _predictor.run(batch), warm, VISIT_MS)


def predict(photo: Path) -> int:
    """Take a photo from the disk; → the position of its class."""
    return int(_predictor.run(_input(photo)[None])[0].argmax())


@cache
def _inputs() -> np.ndarray:
    """Give the photos as the model takes them: float32 (N, 3, S, S)."""
    return np.stack([_input(photo) for photo in _photos])


def _input(photo: Path) -> np.ndarray:
    return np.ascontiguousarray(prepare(read_image(photo), _predictor.preprocessing))


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
