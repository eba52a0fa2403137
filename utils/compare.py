"""One interface for every model file, and a latency protocol that is the same for all."""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.config import SEED, THREADS, InputError, relative

if TYPE_CHECKING:  # processes that are timed import this module and must stay small
    import pandas as pd

BATCH = 64  # images per call when only the answers matter


class Predictor:
    """A model file (``.pth`` or ``.onnx``) as a function: images float32 (N, 3, H, W) → logits (N, C), on the CPU.

    `details` holds what the file says of itself, such as classes and preprocessing.
    """

    def __init__(self, path: Path, threads: int = THREADS):
        if path.suffix == ".onnx":
            from utils.session import open_session, read_metadata

            session = open_session(path, threads)
            self.details = read_metadata(session)
            self.run = lambda images: session.run(None, {"input": images})[0]
        elif path.suffix == ".pth":
            self._open_checkpoint(path, threads)
        else:
            raise InputError(f"{relative(path)}: a model file ends in .pth or .onnx")

    def _open_checkpoint(self, path: Path, threads: int) -> None:
        import torch

        from utils.model import load_model

        torch.set_num_threads(threads)
        model, self.details = load_model(path)

        def run(images: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return model(torch.from_numpy(images)).numpy()

        self.run = run

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.concatenate([self.run(images[start : start + BATCH]) for start in range(0, len(images), BATCH)])


def measure_latency(
    paths: dict[str, Path], images: np.ndarray, batch_sizes: Sequence[int], rounds: int = 20, threads: int = THREADS
) -> pd.DataFrame:
    """Time each model on the same images, each in a process of its own with equal threads.

    In one process torch would wait for ONNX Runtime's idle threads (onnxruntime#13808). All models stay loaded; each
    round visits them in a new random order, so that noise of the machine hits all alike. Returns one row per model and
    batch size: p50, p90, p99 in ms per call, and the process's peak memory in MB.
    """
    import pandas as pd
    from tqdm.auto import tqdm

    generator = np.random.default_rng(SEED)
    times: dict[tuple[str, int], list[float]] = {(name, size): [] for size in batch_sizes for name in paths}
    with ExitStack() as stack:
        # spawn, as on Windows and macOS: a fork would copy this process's threads and memory
        context = multiprocessing.get_context("spawn")
        workers = {
            name: stack.enter_context(ProcessPoolExecutor(1, context, _start_worker, (path, images, threads)))
            for name, path in paths.items()
        }
        for started in [worker.submit(_time_calls, 1) for worker in workers.values()]:
            started.result()  # all load at the same time, and none while another is timed
        for _ in tqdm(range(rounds), "latency", leave=False):
            for name, size in generator.permutation(np.array(list(times), dtype=object)):
                times[name, size] += workers[name].submit(_time_calls, size).result()
        memory = {name: worker.submit(_peak_memory).result() for name, worker in workers.items()}
    rows = [(*key, *np.percentile(values, [50, 90, 99]), memory[key[0]]) for key, values in times.items()]
    return pd.DataFrame(rows, columns=["model", "batch", "p50", "p90", "p99", "peak_rss_mb"])


def _start_worker(path: Path, images: np.ndarray, threads: int) -> None:
    global _predictor, _images
    _predictor, _images = Predictor(path, threads), images


def _time_calls(batch_size: int, calls: int = 5) -> list[float]:
    """Time some calls in ms; one more before them warms caches up."""
    batch = np.resize(_images, (batch_size, *_images.shape[1:]))
    times = []
    for _ in range(calls + 1):
        start = time.perf_counter()
        _predictor.run(batch)
        times.append((time.perf_counter() - start) * 1e3)
    return times[1:]


def _peak_memory() -> float:
    """Return this process's peak resident memory in MB."""
    if os.name == "nt":
        import psutil

        return psutil.Process().memory_info().peak_wset / 1e6
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    # Linux hands getrusage's peak down from the parent process; this one starts with the program
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1e3


def decide(
    models: pd.DataFrame,
    difference: tuple[float, float],
    recall: pd.DataFrame,
    minority: Sequence[str],
    margin: float,
) -> dict[str, str]:
    """Say which file to ship and why, from the numbers alone.

    INT8 ships only if it is smaller *and* not slower than ONNX *and* no worse: the lower end of the paired interval of
    the macro-F1 `difference` is above −`margin`, and no minority class loses more recall than that. Otherwise ONNX
    ships, or PyTorch, should that be faster. `models` has the rows pytorch, onnx, int8 with bytes and latency_ms
    (median, one image), `recall` the classes as rows.
    """
    smaller = models["bytes"]["int8"] / models["bytes"]["onnx"]
    slower = models["latency_ms"]["int8"] / models["latency_ms"]["onnx"]
    lost = (recall["onnx"] - recall["int8"])[list(minority)]
    objections = [
        *([f"it is not smaller ({smaller:.0%} of ONNX)"] if smaller >= 1 else []),
        *([f"it is slower ({slower:.2f} times ONNX's time for one image)"] if slower > 1 else []),
        *([f"a loss of {-difference[0]:.3f} macro-F1 cannot be excluded"] if difference[0] < -margin else []),
        *(f"{name} loses {loss:.1%} of its recall" for name, loss in lost.items() if loss > margin),
    ]
    if not objections:
        return {
            "ship": "int8",
            "reason": f"{smaller:.0%} of ONNX's size, {slower:.2f} of its latency, no worse within {margin} macro-F1",
        }
    fastest = "onnx" if models["latency_ms"]["onnx"] <= models["latency_ms"]["pytorch"] else "pytorch"
    return {"ship": fastest, "reason": "not INT8, since " + " and ".join(objections)}
