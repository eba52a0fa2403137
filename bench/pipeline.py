"""Seconds and peak memory of each notebook, with run.py's options: python -m bench.pipeline [--data DIR --arch NAME].

Every notebook runs in a fresh process tree, as with run.py, and all of them twice: first into an empty
checkpoints/bench, then with what they remember there and a warm disk cache. Their plots are in runs/bench. Memory is
the tree's largest sum of resident sets, sampled twice a second, in which pages that processes share count once
where the system tells (Linux).
"""

import shutil
import subprocess
import sys
import time

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
    target = f"runs/bench/{name}.ipynb"
    (run.ROOT / target).parent.mkdir(parents=True, exist_ok=True)
    code = f"import run, sys; sys.exit(run.execute({name!r}, {settings!r}, run.ROOT / {target!r}))"
    return measure([sys.executable, "-c", code])


def measure(command: list[str]) -> tuple[float, int]:
    """Run a command and return its seconds and the peak resident bytes of its process tree."""
    started = time.perf_counter()
    peak = 0
    process = subprocess.Popen(command, cwd=run.ROOT)
    while process.poll() is None:
        peak = max(peak, resident(psutil.Process(process.pid)))
        time.sleep(0.5)  # a look takes a tenth of a second of one core
    if process.returncode:
        sys.exit(f"{command[-1]} failed")
    return time.perf_counter() - started, peak


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
