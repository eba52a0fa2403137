"""The same ONNX file in other runtimes: whether it gives the same predictions there, and how fast."""

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

REFERENCE = "ONNX Runtime"  # as everything else is measured with
ROUNDS = 8  # of timing
COLUMNS = ["runtime", "file", "agreement", "ci95", "flips", "sqnr_db", "latency_ratio"]
Run = Callable[[np.ndarray], np.ndarray]  # images (N, 3, H, W) → logits (N, C)


def _open_onnxruntime(path: Path, **options) -> Run:
    session = open_session(path, **options)
    return lambda images: session.run(None, {"input": images})[0]


def _open_openvino(path: Path, **config) -> Run:
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": THREADS} | config)
    return lambda images: compiled(images)[0]


RUNTIMES = {  # name → how a file is opened there, and with which options
    REFERENCE: (_open_onnxruntime, {}),
    "ONNX Runtime, graph as written": (_open_onnxruntime, {"optimize": "none"}),
    "ONNX Runtime, sums that cannot overflow": (_open_onnxruntime, {"precise": True}),
    "OpenVINO": (_open_openvino, {}),
    "OpenVINO, in float32": (_open_openvino, {"INFERENCE_PRECISION_HINT": "f32"}),
}


def choose_runtimes(names: Sequence[str] | None) -> list[str]:
    """List the runtimes to try: those that are named, or all that are installed. Raises InputError for others."""
    installed = [name for name in RUNTIMES if "OpenVINO" not in name or find_spec("openvino")]
    unknown = [name for name in names or [] if name not in RUNTIMES]
    require(not unknown, f"RUNTIMES {unknown}: there are {', '.join(RUNTIMES)}")
    missing = [name for name in names or [] if name not in installed]
    require(not missing, f"RUNTIMES {missing}: not installed; pip install openvino")
    return list(names or installed)


def compare_runtimes(paths: dict[str, Path], images: np.ndarray, names: Sequence[str] | None = None) -> pd.DataFrame:
    """Run each file on images float32 (N, 3, H, W) in each runtime; → a row each, beside ONNX Runtime as it is.

    Columns: runtime, file, agreement with its Wilson interval `ci95`, `flips` (positions of images), sqnr_db of the
    logits, and latency_ratio (median, low, high) for one image, paired by rounds.
    """
    others = [name for name in choose_runtimes(names) if name != REFERENCE]
    rows = []
    for file, path in paths.items():
        expected = _predict(REFERENCE, path, images)
        for name in progress(others, f"{file} elsewhere"):
            logits = _predict(name, path, images)
            flips = np.flatnonzero(logits.argmax(1) != expected.argmax(1))
            row = {"runtime": name, "file": file, "agreement": 1 - len(flips) / len(images)}
            row["ci95"] = wilson_interval(len(images) - len(flips), len(images))
            row["flips"] = flips.tolist()
            row["sqnr_db"] = sqnr_db(expected, logits)
            row["latency_ratio"] = _latency_ratio(name, path, images[:1])
            rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def tabulate(rows: pd.DataFrame) -> pd.DataFrame:
    """Lay out what `compare_runtimes` found, by file and runtime, with the ends of both intervals."""
    table = rows.set_index(["file", "runtime"])[["agreement"]].copy()
    table["low"], table["high"] = _columns(rows["ci95"], 2)
    table["flips"] = rows["flips"].str.len().to_numpy()
    table["SQNR, dB"] = rows["sqnr_db"].to_numpy()
    table["time / ONNX Runtime"], table["time low"], table["time high"] = _columns(rows["latency_ratio"], 3)
    return table


def _columns(rows: pd.Series, width: int) -> np.ndarray:
    return np.array(rows.tolist(), dtype=float).reshape(-1, width).T  # also where there are no rows


def _open(name: str, path: Path) -> Run:
    open_file, options = RUNTIMES[name]
    return open_file(path, **options)


def _predict(name: str, path: Path, images: np.ndarray) -> np.ndarray:
    open_file, options = RUNTIMES[name]
    if open_file is _open_onnxruntime:
        return run_model(path, images, **options)  # calls side by side
    return np.concatenate([*map(open_file(path, **options), split_batch(images))])


def _latency_ratio(name: str, path: Path, image: np.ndarray) -> tuple[float, float, float]:
    """Time the reference and another runtime side by side; → the median of their ratio, and its 95 % interval."""
    times = time_calls({which: partial(_open(which, path), image) for which in (REFERENCE, name)}, range(ROUNDS))
    return ratio(times[REFERENCE], times[name])
