"""Seconds and peak memory of each notebook, with run.py's options: python -m bench.pipeline [--data DIR --arch NAME].

Every notebook runs as run.py runs it, and all of them twice: first into an empty checkpoints/bench, then with what they
remember there and a warm disk cache. Their plots are in runs/bench. Memory is the largest sum of the resident sets of
this process and all that it starts, sampled twice a second, in which pages that processes share count once where the
system tells (Linux).
"""

import shutil
import sys
import threading
import time
from collections.abc import Callable

import psutil

import run

COLUMNS = ["first, s", "again, s", "first, MB", "again, MB"]


def main() -> None:
    """Print a table of notebooks."""
    settings = run.read_settings(run.parse_arguments())
    settings["NAME"] = "bench"
    shutil.rmtree(run.ROOT / "checkpoints" / "bench", ignore_errors=True)
    first = [measure_notebook(name, settings) for name in run.NOTEBOOKS]
    print(f"{'notebook':16}" + "".join(f"{column:>11}" for column in COLUMNS))
    again = []
    for name, before in zip(run.NOTEBOOKS, first, strict=True):
        again.append(measure_notebook(name, settings))
        print_row(name, before, again[-1])
    print_row("all", total(first), total(again))


def total(measured: list[tuple[float, int]]) -> tuple[float, int]:
    """Add the seconds, and take the largest of the peaks, since one notebook runs at a time."""
    return sum(seconds for seconds, _ in measured), max(peak for _, peak in measured)


def print_row(name: str, first: tuple[float, int], again: tuple[float, int]) -> None:
    """Print seconds and megabytes of both passes."""
    print(f"{name:16}{first[0]:11.1f}{again[0]:11.1f}{first[1] / 1e6:11.0f}{again[1] / 1e6:11.0f}", flush=True)


def measure_notebook(name: str, settings: dict) -> tuple[float, int]:
    """Run a notebook into runs/bench; → seconds and peak bytes."""
    target = run.ROOT / "runs" / "bench" / f"{name}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    failure, seconds, peak = measure(lambda: run.execute(name, settings, target))
    if failure:
        sys.exit(failure)
    return seconds, peak


def measure(work: Callable[[], object]) -> tuple[object, float, int]:
    """Do some work; → what it returns, its seconds, and the peak resident bytes of this process tree meanwhile."""
    peaks, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.5):  # a look takes a tenth of a second of one core
            peaks.append(resident(psutil.Process()))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started = time.perf_counter()
    try:
        found = work()
    finally:
        done.set()
    return found, time.perf_counter() - started, max(peaks)


def resident(parent: psutil.Process) -> int:
    """Sum the resident bytes of a process and its descendants."""
    size = 0
    for process in [parent, *parent.children(recursive=True)]:
        try:
            memory = process.memory_full_info()
            size += getattr(memory, "pss", memory.rss)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # ended since it was listed
    return size


if __name__ == "__main__":
    main()
