"""How long a model takes: each in a process of its own, and all under the same conditions."""

import multiprocessing
import random
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from utils import stopwatch
from utils.compare_models import latency_worker
from utils.compare_models.latency_worker import PHOTO
from utils.config import SEED
from utils.parallel import progress

BATCH_ROUNDS = 2  # of larger batches, which take long and decide nothing
FEWEST_ROUNDS = 10  # before the ratio may be called clear
CLEAR = 0.05  # width of the ratio's interval
CALL = ["model", "task", "round", "ms"]


class Timing(NamedTuple):
    """What `measure_latency` found.

    `calls`: a row per call: model, task (batch size, or "photo"), round, ms. `processes`: a row per model: load_ms,
    cold_start_ms, peak_rss_mb after one image, peak_rss_mb_batch after all. `reference`: ms that the same fixed work
    took in each round.
    """

    calls: pd.DataFrame
    processes: pd.DataFrame
    reference: np.ndarray

    def noise(self) -> float:
        """How much longer than usual the fixed work took in the slowest tenth of rounds: 1.1 is 10 % longer."""
        return float(np.percentile(self.reference, 90) / np.median(self.reference))


def measure_latency(
    paths: dict[str, Path],
    photos: Sequence[Path],
    batch_sizes: Sequence[int],
    rounds: int = 20,
    preprocessing: dict | None = None,
    pair: tuple[str, str] | None = None,
) -> Timing:
    """Time each model on the same photos, each in a process of its own with equal threads that do not spin.

    In one process torch would wait for ONNX Runtime's idle threads (onnxruntime#13808). First each process starts while
    nothing else runs; then all stay loaded, and each round visits every task in random order and, within a task, the
    models in random order, one right after the other, so that a busy moment of the machine hits all alike. The first
    batch size and whole photos are timed in every round, larger batches in two. There are fewer rounds than `rounds`
    once the ratio of a `pair` of models is clear. `preprocessing` is for files that have none.
    """
    generator = random.Random(SEED)
    names, calls, reference, started, workers = list(paths), [], [], {}, {}
    with ExitStack() as stack:
        for name in progress(names, "start"):
            workers[name], started[name] = _start_process(stack, paths[name], list(photos), preprocessing)
        for number in progress(range(rounds), "latency"):
            reference.append(_reference_ms())
            sizes = batch_sizes if number < BATCH_ROUNDS else batch_sizes[:1]
            tasks = [*sizes, PHOTO]
            for task in generator.sample(tasks, len(tasks)):
                visits = {name: partial(_visit, worker, task, number > 0) for name, worker in workers.items()}
                for name, times in stopwatch.time_round(visits, generator).items():
                    calls += [(name, task, number, ms) for ms in times]
            if pair and number + 1 >= FEWEST_ROUNDS and _is_clear(calls, *pair, batch_sizes[0]):
                break
        for name in names:
            started[name]["peak_rss_mb_batch"] = workers[name].submit(latency_worker.peak_memory).result()
    tasks = [*batch_sizes, PHOTO]
    calls.sort(key=lambda call: (tasks.index(call[1]), names.index(call[0])))  # as given: tables keep this order
    processes = pd.DataFrame(started).T.rename_axis("model")
    return Timing(pd.DataFrame(calls, columns=CALL), processes, np.array(reference))


def _start_process(stack: ExitStack, *arguments: object) -> tuple[ProcessPoolExecutor, dict[str, float]]:
    """Start a process that ends with the stack, and let it predict a photo; → it, and what that took."""
    begin = time.perf_counter()
    # spawn, as on Windows and macOS: a fork would copy this process's threads and memory
    worker = stack.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context("spawn")))
    found = worker.submit(latency_worker.start, *arguments).result()
    found["cold_start_ms"] = (time.perf_counter() - begin) * 1e3
    return worker, found


def _visit(worker: ProcessPoolExecutor, task: int | str, warm: bool) -> list[float]:
    return worker.submit(latency_worker.time_task, task, warm).result()


def _reference_ms() -> float:
    """Time a fixed piece of work."""
    numbers = np.random.default_rng(SEED).random(200_000)
    return stopwatch.milliseconds(lambda: np.sort(numbers))


def summarize(calls: pd.DataFrame) -> pd.DataFrame:
    """Reduce calls to a row per model and task: p50, p90, p99 in ms, and low and high, p50's interval over rounds."""
    rows = []
    for (task, name), of_both in calls.groupby(["task", "model"], sort=False):
        p50, p90, p99 = np.percentile(of_both["ms"], [50, 90, 99])
        low, high = stopwatch.median_interval(of_both.groupby("round")["ms"].median().to_numpy())
        rows.append((name, task, p50, p90, p99, min(low, p50), max(high, p50)))
    return pd.DataFrame(rows, columns=["model", "task", "p50", "p90", "p99", "low", "high"])


def latency_ratio(calls: pd.DataFrame, first: str, second: str, task: int | str) -> tuple[float, float, float]:
    """Compare two models round by round; → the median of second's time over first's, and its 95 % interval."""
    of_task = calls[calls["task"] == task]
    quick = of_task.groupby(["round", "model"])["ms"].quantile(stopwatch.QUICK / 100).unstack()
    return stopwatch.ratio(quick[first].to_numpy(), quick[second].to_numpy())


def _is_clear(calls: list[tuple], first: str, second: str, task: int) -> bool:
    """Tell whether the interval of two models' ratio is narrow: 5 % wide, or half of its distance from 1."""
    ratio, low, high = latency_ratio(pd.DataFrame(calls, columns=CALL), first, second, task)
    return high - low <= max(CLEAR, abs(1 - ratio) / 2)
