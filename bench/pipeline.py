"""Seconds and peak memory of each notebook: python -m bench.pipeline [run.py's options].

Every notebook runs in a fresh process tree, as with run.py; memory is the tree's largest sum of resident sets, sampled
ten times a second, in which pages that processes share count once where the system tells (Linux). The first pass warms
the disk cache and is not counted.
"""

import subprocess
import sys
import time

import psutil

import run


def main() -> None:
    """Print a table of notebooks."""
    arguments = run.parse_arguments()
    settings = {"NAME": "bench"} | run.read_settings(arguments)
    total = 0.0
    print(f"{'notebook':16}{'seconds':>9}{'peak MB':>9}")
    for counted in (False, True):
        for name in run.NOTEBOOKS:
            seconds, peak = measure_notebook(name, settings)
            if counted:
                total += seconds
                print(f"{name:16}{seconds:9.1f}{peak / 1e6:9.0f}", flush=True)
    print(f"{'all':16}{total:9.1f}")


def measure_notebook(name: str, settings: dict) -> tuple[float, int]:
    """Run a notebook, whose plots can be looked at in runs/bench; → seconds and peak bytes."""
    target = f"runs/bench/{name}.ipynb"
    (run.ROOT / target).parent.mkdir(parents=True, exist_ok=True)
    code = f"import run, sys; sys.exit(run.execute({name!r}, {settings!r}, run.ROOT / {target!r}))"
    return measure([sys.executable, "-c", code])


def measure(command: list[str]) -> tuple[float, int]:
    """Run a command and return its seconds and the peak resident bytes of its process tree."""
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, cwd=run.ROOT)
    while process.poll() is None:
        peak = max(peak, resident(psutil.Process(process.pid)))
        time.sleep(0.1)
    if process.returncode:
        sys.exit(f"{command[-1]} failed")
    return time.perf_counter() - started, peak


def resident(process: psutil.Process) -> int:
    """Sum the resident bytes of a process and its descendants."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            memory = each.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # ended since it was listed
    return total


if __name__ == "__main__":
    main()
