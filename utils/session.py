"""An ONNX file, opened; imports neither torch nor pandas, so that a process that only runs the file stays small."""

import json
import platform
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy._core._multiarray_umath import __cpu_features__ as CPU

from utils.config import BATCH, THREADS, InputError, relative, require
from utils.files import likely_cause

CHECKED = 8  # pictures that a deployed file checks itself with
TOLERANCE = 0.02  # of a probability: sound runtimes round otherwise, and now and then move an 8-bit value by one
LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


def open_session(
    path: Path | bytes, threads: int = THREADS, precise: bool = False, optimize: str = "all", in_order: bool = False
) -> ort.InferenceSession:
    """Open an ONNX file, or its bytes, on the CPU, with threads that sleep when idle.

    With `precise`, 8-bit sums cannot overflow, at the price of speed on CPUs where they might. Graphs are optimized in
    "all" ways, in "basic" ones, which leave 8-bit operators as the file has them, or in "none". Nodes that run
    `in_order` take less memory where every tensor is looked at. Raises InputError when the file cannot be read.
    """
    if isinstance(path, Path):
        require(path.exists(), f"{relative(path)} does not exist: run onnx_quant.ipynb to make it")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.graph_optimization_level = LEVELS[optimize]
    if in_order:
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    # threads that spin while they wait slow down whatever else the process runs
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if precise and sums_in_16_bits():
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ORT's exceptions share no base class
        if isinstance(path, bytes):
            raise
        cause = "though the file is whole" if _is_whole(path) else likely_cause(path)
        reason = str(error).split(" : ")[-1]
        raise InputError(f"{relative(path)} cannot be read: {cause}. ONNX Runtime: {reason}") from error


def open_to_predict(path: Path, threads: int = THREADS) -> ort.InferenceSession:
    """Open a file so that its predictions are right on this CPU, at the price of speed if it needs that.

    Weights of 8 bits may overflow on x86 CPUs without VNNI, which sum two products in 16 bits (onnxruntime#5849).
    """
    session = open_session(path, threads)
    if read_metadata(session).get("weight_bits") == 8 and sums_in_16_bits():
        return open_session(path, threads, precise=True)
    return session


def sums_in_16_bits() -> bool:
    """Tell whether this is an x86 CPU without AVX-512's VNNI; NumPy has asked it, and needs no torch to do so."""
    return bool(CPU.get("SSSE3")) and not CPU.get("AVX512VNNI")


def _is_whole(path: Path) -> bool:
    """Tell whether a file holds a network, whatever ONNX Runtime thinks of it."""
    try:
        import onnx  # only now: whoever only runs files need not have it

        return len(onnx.load(path, load_external_data=False).graph.node) > 0
    except Exception:  # protobuf's own kind, among others
        return False


def run_model(path: Path, images: np.ndarray, batch: int = BATCH, **options) -> np.ndarray:
    """Run an ONNX file on images float32 (N, 3, H, W), so many a call → logits (N, C)."""
    return run_session(open_session(path, threads=1, **options), images, batch)[0]


def run_session(session: ort.InferenceSession, images: np.ndarray, batch: int = BATCH) -> list[np.ndarray]:
    """Run a session on images (N, 3, H, W), so many a call; → its outputs, which have a row per image."""
    return [np.concatenate(rows) for rows in zip(*run_calls(session, split_batch(images, batch)), strict=True)]


def run_calls(session: ort.InferenceSession, batches: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """Run a session on each batch (B, 3, H, W); → the outputs of every call.

    Calls run side by side. In a session of one thread this is faster than threads that share a call, and gives the same
    bits on any number of cores.
    """
    name = session.get_inputs()[0].name
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda batch: session.run(None, {name: batch}), batches))


def split_batch(images: np.ndarray, batch: int = BATCH) -> list[np.ndarray]:
    """Split images (N, 3, H, W) into the batches of single calls."""
    return [images[start : start + batch] for start in range(0, len(images), batch)]


def read_metadata(session: ort.InferenceSession) -> dict:
    """Read what `write_metadata` stored; what others stored is text."""
    metadata = {}
    for name, value in session.get_modelmeta().custom_metadata_map.items():
        try:
            metadata[name] = json.loads(value)
        except ValueError:
            metadata[name] = value
    return metadata


def formula_pictures(height: int = 96, width: int = 96) -> list[np.ndarray]:
    """Draw the pictures that a deployed file checks itself with, uint8 (1, H, W, 3), by a formula of whole numbers."""
    sides = [(height, width)] * CHECKED
    if (height, width) == (96, 96):  # they are free, so resizing is to be tried, too
        sides[-2:] = [(60, 140), (144, 72)]
    drawn = []
    for number, (rows, columns) in enumerate(sides):
        y, x, channel = np.ogrid[:rows, :columns, :3]
        pattern = x * (3 + number) + y * (5 + 2 * number) + x * y // (7 + number) + 85 * channel
        drawn.append((pattern % 256).astype(np.uint8)[None])
    return drawn


def predict_formula(session: ort.InferenceSession) -> np.ndarray:
    """Let a deployed file classify `formula_pictures`; → probabilities (CHECKED, C)."""
    sides = [side for side in session.get_inputs()[0].shape[1:3] if isinstance(side, int)]  # names where all will do
    pictures = formula_pictures(*sides)
    return np.concatenate([session.run(["probabilities"], {"image": picture})[0] for picture in pictures])


def check_itself(path: Path, session: ort.InferenceSession, expected: list | None) -> None:
    """Stop where a deployed file does not predict here what it did where it was made (CHECKED, C): InputError.

    Files that were made before there was this check have nothing `expected`, and are not checked.
    """
    difference = float(np.abs(predict_formula(session) - expected).max()) if expected else 0.0
    here = f"ONNX Runtime {ort.__version__} on {platform.machine()} moves probabilities by {difference:.2f}"
    what = f"{relative(path)} does not predict here what it did where it was made: {here}, not {TOLERANCE} at most"
    advice = "install another version of onnxruntime, or use the file without int8 in its name"
    require(difference <= TOLERANCE, f"{what}: {advice}")


def outdated(version: str = ort.__version__) -> str:
    """Say what an onnxruntime of this version gets wrong, nothing where all is well (its issues 26324 and 27671)."""
    if tuple(map(int, version.split(".")[:2])) >= (1, 25):
        return ""
    return f"onnxruntime {version} gives wrong predictions from INT8 on some CPUs: pip install -U onnxruntime"
