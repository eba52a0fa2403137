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
from utils.parallel import progress
from utils.session import open_session, split_batch
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


RUNTIMES = {  # name → how a file is opened there
    REFERENCE: _open_onnxruntime,
    "ONNX Runtime, graph as written": partial(_open_onnxruntime, optimize="none"),
    "OpenVINO": _open_openvino,
    "OpenVINO, in float32": partial(_open_openvino, INFERENCE_PRECISION_HINT="f32"),
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

    COLUMNS: runtime, file, agreement with its Wilson interval `ci95`, `flips` (positions of images), sqnr_db of the
    logits, and latency_ratio (median, low, high) for one image, paired by rounds.
    """
    others = [name for name in choose_runtimes(names) if name != REFERENCE]
    rows = []
    for file, path in paths.items():
        reference = RUNTIMES[REFERENCE](path)
        expected = np.concatenate([reference(batch) for batch in split_batch(images)])
        for name in progress(others, f"{file} elsewhere"):
            run = RUNTIMES[name](path)
            logits = np.concatenate([run(batch) for batch in split_batch(images)])
            flips = np.flatnonzero(logits.argmax(1) != expected.argmax(1)).tolist()
            same = len(images) - len(flips)
            row = {"runtime": name, "file": file, "agreement": same / len(images), "flips": flips}
            row["ci95"] = wilson_interval(same, len(images))
            row["sqnr_db"] = sqnr_db(expected, logits)
            calls = {"here": partial(reference, images[:1]), "there": partial(run, images[:1])}
            times = time_calls(calls, range(ROUNDS))
            rows.append(row | {"latency_ratio": ratio(times["here"], times["there"])})
    return pd.DataFrame(rows, columns=COLUMNS)
