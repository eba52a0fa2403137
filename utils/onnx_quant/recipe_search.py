"""The search for an INT8 recipe: candidates are scored, timed, and chosen from by a rule."""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pandas as pd

from utils.config import SEED
from utils.metrics import confusion, macro_f1, sqnr_db
from utils.onnx_quant.calibration import CalibrationSet
from utils.onnx_quant.graph import layers
from utils.onnx_quant.recipes import Recipe, base_recipe, candidate_recipes
from utils.progress import progress
from utils.session import open_session, run_model

LATENCY_TIE = 1.05  # times the fastest latency: what lies within is as fast, but for noise
SQNR_TIE = 1.0  # dB
Quantize = Callable[[Path, Recipe], None]  # writes an INT8 file by a recipe


class ScoringSet(NamedTuple):
    """What candidates are scored on: the float model as exported and as prepared, images (N, 3, H, W) and labels (N,).

    `valid` (N,) marks the validation images.
    """

    float_path: Path
    prepared_path: Path
    images: np.ndarray
    labels: np.ndarray
    valid: np.ndarray


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


def search_recipe(
    quantize: Quantize, cpu: dict, scoring: ScoringSet, budget: dict[str, float], everything: bool = False
) -> dict:
    """Try recipes in two stages, the second only if no candidate of the first is within the budget, or `everything`.

    Returns `rows`, one per file, fp32 first (recipe, bytes, latency_ms, valid_macro_f1, and what `score` says); the
    `stage` that was reached; and `sensitivity`, found in the second stage: node → dB.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = {"fp32": scoring.float_path}
        first = candidate_recipes(cpu, scoring.prepared_path)
        paths |= quantize_all(quantize, first, Path(folder))
        rows, stage, sensitivity = score_files(paths, scoring), 1, pd.Series(dtype=float)
        if everything or not within_budget(pd.DataFrame(rows[1:]), rows[0], budget).any():
            stage, sensitivity = 2, rank_sensitivity(quantize, base_recipe(cpu, scoring.prepared_path), scoring)
            every_recipe = candidate_recipes(cpu, scoring.prepared_path, list(sensitivity.index))
            further = quantize_all(quantize, every_recipe[len(first) :], Path(folder))
            rows, paths = rows + score_files(further, scoring), paths | further
        latency = time_models(paths, scoring.images[:1])
    rows = [row | {"latency_ms": latency[row["recipe"]]} for row in rows]
    return {"rows": rows, "stage": stage, "sensitivity": sensitivity.to_dict()}


def quantize_all(quantize: Quantize, recipes: Sequence[Recipe], folder: Path) -> dict[str, Path]:
    """Write an INT8 file per recipe into a folder; → recipe's name → file."""
    paths = {}
    for recipe in progress(recipes, "quantize"):
        paths[recipe.name] = Path(tempfile.mkdtemp(dir=folder)) / "candidate.onnx"
        quantize(paths[recipe.name], recipe)
    return paths


def score_files(paths: dict[str, Path], scoring: ScoringSet) -> list[dict]:
    """Score each file against the float model; the macro-F1 on the validation images is given as well."""
    reference, rows = run_model(scoring.float_path, scoring.images), []
    for name, path in progress(paths.items(), "score"):
        logits = run_model(path, scoring.images)
        valid_macro_f1 = macro_f1(scoring.labels[scoring.valid], logits[scoring.valid].argmax(1), logits.shape[1])
        row = {"recipe": name, **score(scoring.labels, reference, logits), "valid_macro_f1": valid_macro_f1}
        rows.append(row | {"bytes": path.stat().st_size})
    return rows


def within_budget(candidates: pd.DataFrame, reference: dict[str, float], budget: dict[str, float]) -> pd.Series:
    """Tell which candidates keep the answers.

    `candidates` has the columns agreement, macro_f1, worst_recall; `reference` is the float model's row; `budget` says
    how much of macro_f1 and of worst_recall may be lost, and the least agreement.
    """
    within = candidates["agreement"] >= budget["agreement"]
    for name in ("macro_f1", "worst_recall"):
        within &= reference[name] - candidates[name] <= budget[name] + 1e-9  # differences of floats are not exact
    return within


def choose(candidates: pd.DataFrame, within: pd.Series) -> str:
    """Name the fastest candidate that is `within` the budget; `candidates` has latency_ms, agreement, sqnr_db.

    Among those that are as fast but for noise, and as near to fp32 within a decibel, the first one, as the simplest
    recipes come first. If none is within the budget, speed does not count: the one with most of fp32's answers, and of
    several the nearest to it.
    """
    if not within.any():
        return str(candidates.sort_values(["agreement", "sqnr_db"], ascending=False, kind="stable").index[0])
    fast = candidates[within & (candidates["latency_ms"] <= LATENCY_TIE * candidates.loc[within, "latency_ms"].min())]
    return str((fast["sqnr_db"] >= fast["sqnr_db"].max() - SQNR_TIE).idxmax())


def describe_choice(chosen: pd.Series, fp32: pd.Series, within: bool, stage: int) -> str:
    """Say in Markdown what was chosen, in which `stage`, `within` the budget or not, and how it compares with fp32."""
    speed = chosen["latency_ms"] / fp32["latency_ms"]
    sentences = [
        f"**{chosen.name}** takes {speed:.2f} of fp32's time and gives {chosen['agreement']:.1%} of its answers, at an "
        f"SQNR of {chosen['sqnr_db']:.1f} dB."
    ]
    if stage == 1:
        sentences.append("It keeps the answers, so the search stopped after its first stage.")
    if not within:
        sentences.append("*No candidate is within the budget; this one has most of fp32's answers.*")
    if speed > 1:
        sentences.append("**On this CPU fp32 is faster: this network is too small to gain from INT8.**")
    return " ".join(sentences)


def rank_sensitivity(quantize: Quantize, recipe: Recipe, scoring: ScoringSet, images: int = 32) -> pd.Series:
    """Leave layers in float and see what that gains: dB of SQNR, the most sensitive first.

    First in groups of neighbouring layers, then each layer of the best group: some √N + √N quantizations instead of N.
    Biases are not corrected here, which would hide the differences.
    """
    recipe = recipe._replace(correct_biases=False)
    names = [node.name for node in layers(onnx.load(scoring.prepared_path))]
    some = scoring.images[:: max(1, len(scoring.images) // images)][:images]
    reference = run_model(scoring.float_path, some)

    def sqnr_without(excluded: Sequence[str]) -> float:
        with tempfile.TemporaryDirectory() as folder:
            quantize(Path(folder) / "part.onnx", recipe._replace(nodes_to_exclude=tuple(excluded)))
            return sqnr_db(reference, run_model(Path(folder) / "part.onnx", some))

    groups = np.array_split(names, max(1, math.isqrt(len(names))))
    best = max(progress(groups, "groups of layers"), key=sqnr_without)
    nothing = sqnr_without([])
    gains = {str(name): sqnr_without([name]) - nothing for name in progress(best, "layers")}
    return pd.Series(gains).sort_values(ascending=False)


def describe_sensitivity(gains: dict[str, float], shown: int = 5) -> str:
    """Say in Markdown which layers gain most in float (node → dB), or that the search did not have to ask."""
    if not gains:
        return 'The search stopped before this question mattered; `SEARCH = "all"` asks it in any case.'
    rows = [f"| {name} | {gain:+.1f} |" for name, gain in list(gains.items())[:shown]]
    return "\n".join(["| layer | dB gained in float |", "|---|---|", *rows])


def time_models(paths: dict[str, Path], image: np.ndarray, rounds: int = 15, calls: int = 4) -> dict[str, float]:
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


def try_draws(
    quantize: Callable[[CalibrationSet, Path], None],
    candidates: CalibrationSet,
    whole: Path,
    scoring: ScoringSet,
    sizes: Sequence[int] = (16, 64),
    draws: int = 5,
) -> list[dict]:
    """Calibrate on random draws of the `candidates`, without replacement; → a row per draw, and one for all of them.

    `quantize(calibration_set, target)` writes a model; `whole` is the one that was calibrated on all. Each is scored
    against the float model on the images of `scoring`: agreement and sqnr_db.
    """
    generator, total = np.random.default_rng(SEED), len(candidates)
    reference = run_model(scoring.float_path, scoring.images)
    drawn = [generator.choice(total, size, replace=False) for size in sizes if size < total for _ in range(draws)]
    rows = []

    def judge(path: Path, images: int) -> None:
        logits = run_model(path, scoring.images)
        agreement = float((logits.argmax(1) == reference.argmax(1)).mean())
        rows.append({"images": images, "agreement": agreement, "sqnr_db": sqnr_db(reference, logits)})

    with tempfile.TemporaryDirectory() as folder:
        for chosen in progress(drawn, "draws"):
            quantize(candidates.part(np.sort(chosen)), Path(folder) / "draw.onnx")
            judge(Path(folder) / "draw.onnx", len(chosen))
    judge(whole, total)
    return rows
