"""INT8 candidates: scored, timed, and chosen from by a rule."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pandas as pd

from utils.config import SEED
from utils.metrics import confusion, macro_f1
from utils.onnx_quant.graph import LAYERS
from utils.progress import progress
from utils.session import open_session, run_model

TIE_LATENCY, TIE_DB = 1.05, 1.0  # closer than that, in times the fastest latency and in dB of SQNR, is noise


def sqnr_db(reference: np.ndarray, logits: np.ndarray) -> float:
    """Signal-to-quantization-noise ratio of logits against the float model's, in decibel."""
    noise = np.square(reference - logits, dtype=np.float64).sum()
    return float(10 * np.log10(np.square(reference, dtype=np.float64).sum() / max(noise, 1e-12)))


def score(labels: np.ndarray, reference: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Score logits (N, C) against the labels, and against the float model's logits as `reference`."""
    predictions, num_classes = logits.argmax(1), logits.shape[1]
    counts = confusion(labels, predictions, num_classes)
    present = counts.sum(axis=1) > 0
    return {
        "agreement": float((predictions == reference.argmax(1)).mean()),
        "sqnr_db": sqnr_db(reference, logits),
        "macro_f1": macro_f1(labels, predictions, num_classes),
        "worst_recall": float((np.diag(counts)[present] / counts.sum(axis=1)[present]).min()),
    }


def time_models(paths: dict[str, Path], image: np.ndarray, rounds: int = 15, calls: int = 8) -> dict[str, float]:
    """Time one image (1, 3, H, W) in each ONNX file; → median in ms.

    All models stay loaded, and each round visits them in a new random order, so that a busy moment of the machine hits
    all alike. One process will do as long as nothing but ONNX Runtime runs in it meanwhile.
    """
    sessions = {name: open_session(path) for name, path in paths.items()}
    generator, times = np.random.default_rng(SEED), {name: [] for name in paths}
    for _ in progress(range(rounds), "time"):
        for name in generator.permutation(list(paths)):
            sessions[name].run(None, {"input": image})
            for _ in range(calls):
                started = time.perf_counter()
                sessions[name].run(None, {"input": image})
                times[name].append((time.perf_counter() - started) * 1e3)
    return {name: float(np.median(values)) for name, values in times.items()}


def rank_sensitivity(quantize: Callable[..., None], prepared_path: Path, recipe: dict, images: np.ndarray) -> pd.Series:
    """Leave each Conv and Gemm in float, one at a time, and see what that gains: dB of SQNR, the most sensitive first.

    `quantize(target, **recipe)` writes a model. Biases are not corrected here, which would hide the differences.
    """
    nodes = [node.name for node in onnx.load(prepared_path).graph.node if node.op_type in LAYERS]
    reference, ratios = run_model(prepared_path, images), {}
    with tempfile.TemporaryDirectory() as folder:
        for name in progress(["", *nodes], "sensitivity"):
            path = Path(folder) / "left.onnx"
            quantize(path, **recipe | {"correct": False, "nodes_to_exclude": [name] if name else []})
            ratios[name] = sqnr_db(reference, run_model(path, images))
    return (pd.Series(ratios) - ratios[""]).drop("").sort_values(ascending=False)


def choose(candidates: pd.DataFrame, reference: dict[str, float], budget: dict[str, float]) -> tuple[str, pd.Series]:
    """Choose the fastest candidate that stays within the budget; → its name, and which ones do.

    `candidates` has the columns latency_ms, agreement, sqnr_db, macro_f1, worst_recall; `reference` the float model's
    macro_f1 and worst_recall; `budget` how much of these may be lost, and the least agreement. Among those that are as
    fast but for noise, and as near to fp32 within a decibel, the first one, as the simplest recipes come first. If none
    is within the budget, all are and speed does not count.
    """
    lost = {name: reference[name] - candidates[name] for name in ("macro_f1", "worst_recall")}
    within = candidates["agreement"] >= budget["agreement"]
    for name, loss in lost.items():
        within &= loss <= budget[name] + 1e-9
    rivals = candidates
    if within.any():
        fastest = candidates.loc[within, "latency_ms"].min()
        rivals = candidates[within & (candidates["latency_ms"] <= TIE_LATENCY * fastest)]
    return str((rivals["sqnr_db"] >= rivals["sqnr_db"].max() - TIE_DB).idxmax()), within


def try_recipes(
    quantize: Callable[..., None],
    recipes: dict[str, dict],
    float_path: Path,
    images: np.ndarray,
    labels: np.ndarray,
    valid: np.ndarray,
) -> list[dict]:
    """Quantize by every recipe, score on the images given, and time; → a row per recipe, fp32 first.

    `quantize(target, **recipe)` writes a model; `valid` marks the validation images, whose macro-F1 is given as well.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = {"fp32": float_path} | {name: Path(folder) / f"{i}.onnx" for i, name in enumerate(recipes)}
        reference, rows = run_model(float_path, images), []
        for name, path in progress(paths.items(), "recipes"):
            if name in recipes:
                quantize(path, **recipes[name])
            logits = run_model(path, images)
            valid_macro_f1 = macro_f1(labels[valid], logits[valid].argmax(1), logits.shape[1])
            row = {"recipe": name, **score(labels, reference, logits), "valid_macro_f1": valid_macro_f1}
            rows.append(row | {"bytes": path.stat().st_size})
        latency = time_models(paths, images[:1])
    return [row | {"latency_ms": latency[row["recipe"]]} for row in rows]


def try_draws(
    quantize: Callable[..., None],
    sizes: Sequence[int],
    draws: int,
    images: np.ndarray,
    unseen: np.ndarray,
    float_path: Path,
) -> list[dict]:
    """Calibrate on random draws of the images, without replacement, and on all of them once; → a row per draw.

    `quantize(target, images)` writes a model calibrated on images. Each is scored against the float model on the
    `unseen` ones: agreement and sqnr_db.
    """
    generator, reference, rows = np.random.default_rng(SEED), run_model(float_path, unseen), []
    sizes = [size for size in sizes if size < len(images) for _ in range(draws)]
    samples = [generator.choice(len(images), size, replace=False) for size in sizes]
    with tempfile.TemporaryDirectory() as folder:
        for sample in progress([*samples, np.arange(len(images))], "draws"):
            quantize(Path(folder) / "draw.onnx", images[np.sort(sample)])
            logits = run_model(Path(folder) / "draw.onnx", unseen)
            agreement = float((logits.argmax(1) == reference.argmax(1)).mean())
            rows.append({"images": len(sample), "agreement": agreement, "sqnr_db": sqnr_db(reference, logits)})
    return rows
