"""The same ONNX file in other runtimes: whether it gives the same answers there, and how fast."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from utils.config import THREADS, require
from utils.intervals import wilson_interval
from utils.metrics import sqnr_db
from utils.progress import progress
from utils.session import open_session, run_model, split_batch
from utils.stopwatch import ratio, time_calls

HERE = "ONNX Runtime"  # as everything else is measured with
ROUNDS = 8  # of timing
Run = Callable[[np.ndarray], np.ndarray]  # images (N, 3, H, W) → logits (N, C)


def _open_here(path: Path, **options) -> Run:
    session = open_session(path, **options)
    return lambda images: session.run(None, {"input": images})[0]


def _open_openvino(path: Path, **config) -> Run:
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": THREADS} | config)
    return lambda images: compiled(images)[0]


RUNTIMES = {  # name → how a file is opened there, and with which options
    HERE: (_open_here, {}),
    "ONNX Runtime, graph as written": (_open_here, {"optimize": "none"}),
    "ONNX Runtime, sums that cannot overflow": (_open_here, {"precise": True}),
    "OpenVINO": (_open_openvino, {}),
    "OpenVINO, in float32": (_open_openvino, {"INFERENCE_PRECISION_HINT": "f32"}),
}


def choose_runtimes(names: Sequence[str] | None) -> list[str]:
    """List the runtimes to try: those asked for, or all that are installed. Raises InputError for others."""
    installed = [name for name in RUNTIMES if "OpenVINO" not in name or find_spec("openvino")]
    unknown = [name for name in names or [] if name not in RUNTIMES]
    require(not unknown, f"RUNTIMES {unknown}: there are {', '.join(RUNTIMES)}")
    missing = [name for name in names or [] if name not in installed]
    require(not missing, f"RUNTIMES {missing}: not installed; pip install openvino")
    return list(names or installed)


def compare_runtimes(paths: dict[str, Path], images: np.ndarray, names: Sequence[str] | None = None) -> pd.DataFrame:
    """Let each file answer images float32 (N, 3, H, W) in each runtime; → a row each, beside ONNX Runtime as it is.

    Columns: runtime, file, agreement with its Wilson interval `ci95`, `flips` (positions of images), sqnr_db of the
    logits, and latency_ratio (median, low, high) for one image, paired by rounds.
    """
    rows = []
    for file, path in paths.items():
        here, expected = _open(HERE, path), _answer(HERE, path, images)
        for name in progress([name for name in choose_runtimes(names) if name != HERE], f"{file} elsewhere"):
            there, logits = _open(name, path), _answer(name, path, images)
            flips = np.flatnonzero(logits.argmax(1) != expected.argmax(1))
            row = {"runtime": name, "file": file, "agreement": 1 - len(flips) / len(images)}
            row |= {"ci95": wilson_interval(len(images) - len(flips), len(images)), "flips": flips.tolist()}
            row |= {"sqnr_db": sqnr_db(expected, logits), "latency_ratio": _latency_ratio(here, there, images[:1])}
            rows.append(row)
    return pd.DataFrame(rows)


def describe_runtimes(rows: Sequence[dict], least: float = 0.99) -> str:
    """Say in a sentence or two where files were shown to give the same answers, and warn where they do not."""
    good = sorted({row["runtime"] for row in rows if row["agreement"] >= least})
    bad = [row for row in rows if row["agreement"] < least]
    good = [name for name in good if name not in {row["runtime"] for row in bad}]
    sentences = [f"The files give the same answers in {', '.join(good)}."] if good else []
    for row in bad:
        share = f"{1 - row['agreement']:.1%}"
        sentences.append(f"**In {row['runtime']}, {row['file']} answers otherwise on {share}: do not use it there.**")
    return " ".join(sentences)


def _open(name: str, path: Path) -> Run:
    open_there, options = RUNTIMES[name]
    return open_there(path, **options)


def _answer(name: str, path: Path, images: np.ndarray) -> np.ndarray:
    open_there, options = RUNTIMES[name]
    if open_there is _open_here:
        return run_model(path, images, **options)  # calls side by side
    return np.concatenate([*map(open_there(path, **options), split_batch(images))])


def _latency_ratio(first: Run, second: Run, image: np.ndarray) -> tuple[float, float, float]:
    """Time both on one image, side by side; → the median of second's time over first's, and its 95 % interval."""
    times = time_calls({"first": partial(first, image), "second": partial(second, image)}, range(ROUNDS))
    return ratio(times["first"], times["second"])
