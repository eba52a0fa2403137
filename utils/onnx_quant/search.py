"""The search for an INT8 recipe: candidates are scored, timed, and chosen from by a rule."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from utils.config import SEED, cpu_info
from utils.files import remembered
from utils.metrics import confusion, macro_f1, sqnr_db
from utils.onnx_quant.ranges import CalibrationSet
from utils.onnx_quant.recipes import Recipe
from utils.progress import progress
from utils.session import open_session, run_model
from utils.stopwatch import time_calls

LATENCY_TIE = 1.05  # times the fastest latency: what lies within is as fast, but for noise
SQNR_TIE = 1.0  # dB
Quantize = Callable[[Path, CalibrationSet, Path, Recipe], None]  # prepared file, images, file to write, recipe


class ScoringSet(NamedTuple):
    """What INT8 files are scored on: the float file, rows of the split's table, images (N, 3, H, W), labels (N,)."""

    float_path: Path
    index: pd.DataFrame
    images: np.ndarray
    labels: np.ndarray

    def part(self, *names: str) -> ScoringSet:
        """Take the images of some parts of the split."""
        rows = self.index["split"].isin(names).to_numpy()
        return ScoringSet(self.float_path, self.index[rows], self.images[rows], self.labels[rows])

    def score(self, path: Path) -> dict[str, float]:
        """Score a file, as `score` does."""
        return score(self.labels, run_model(self.float_path, self.images), run_model(path, self.images))


def load_sample(float_path: Path, image_set: Callable, index: pd.DataFrame, limit: int) -> ScoringSet:
    """Read some rows of the index into memory, drawn at random where there are more than `limit`.

    `image_set` makes an ImageDataset of rows.
    """
    rows = index.sample(min(limit, len(index)), random_state=SEED).sort_index()
    dataset = image_set(rows)
    return ScoringSet(float_path, rows, dataset.stack().numpy(), np.array(dataset.labels))


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


def try_recipes(
    recipes: Sequence[Recipe], quantize: Quantize, calibration_set: CalibrationSet, scoring: ScoringSet, cache: Path
) -> pd.DataFrame:
    """Write an INT8 file by each recipe, score it and time it; → a row per file, in order, behind the float one's.

    Columns: recipe (its name), what `score` says, valid_macro_f1, bytes, latency_ms. The `cache` is a JSON file.
    """
    images = [rows["sha256"].tolist() for rows in (calibration_set.index, scoring.index)]
    parts = [scoring.float_path, images, list(recipes), quantize, cpu_info()]
    return pd.DataFrame(remembered(cache, parts, lambda: _try(recipes, quantize, calibration_set, scoring)))


def _try(
    recipes: Sequence[Recipe], quantize: Quantize, calibration_set: CalibrationSet, scoring: ScoringSet
) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        paths = {"fp32": scoring.float_path}
        for recipe in progress(recipes, "quantize"):
            paths[recipe.name] = Path(folder) / f"{len(paths)}.onnx"
            quantize(calibration_set.prepared_path, calibration_set, paths[recipe.name], recipe)
        rows = _score_files(paths, scoring)
        latency = time_models(paths, scoring.images[:1])
    return [row | {"latency_ms": latency[row["recipe"]]} for row in rows]


def _score_files(paths: dict[str, Path], scoring: ScoringSet) -> list[dict]:
    """Score each file against the float model; the macro-F1 on the validation images is given as well."""
    reference, rows = run_model(scoring.float_path, scoring.images), []
    valid = (scoring.index["split"] == "valid").to_numpy()
    for name, path in progress(paths.items(), "score"):
        logits = run_model(path, scoring.images)
        row = {"recipe": name, **score(scoring.labels, reference, logits)}
        row["valid_macro_f1"] = macro_f1(scoring.labels[valid], logits[valid].argmax(1), logits.shape[1])
        row["bytes"] = path.stat().st_size
        rows.append(row)
    return rows


def within_budget(table: pd.DataFrame, budget: dict[str, float]) -> pd.Series:
    """Tell which files keep the answers of the float one, the table's first row.

    Columns: agreement, macro_f1, worst_recall. `budget` says how much of macro_f1 and of worst_recall may be lost, and
    the least agreement.
    """
    within = table["agreement"] >= budget["agreement"]
    for name in ("macro_f1", "worst_recall"):
        within &= table[name].iloc[0] - table[name] <= budget[name] + 1e-9  # differences of floats are not exact
    return within


def choose(table: pd.DataFrame) -> int | str:
    """Choose the fastest INT8 file within the budget; → its row's label. The first row is the float file's.

    Columns: latency_ms, agreement, sqnr_db, within_budget; the simplest recipes come first. Among those that are as
    fast but for noise, and as near to fp32 within a decibel, the first one. If none is within the budget, speed does
    not count: the one with most of fp32's answers, and of several the nearest to it.
    """
    candidates = table.iloc[1:]
    within = candidates[candidates["within_budget"]]
    if within.empty:
        return candidates.sort_values(["agreement", "sqnr_db"], ascending=False, kind="stable").index[0]
    fast = within[within["latency_ms"] <= LATENCY_TIE * within["latency_ms"].min()]
    return (fast["sqnr_db"] >= fast["sqnr_db"].max() - SQNR_TIE).idxmax()


def time_models(paths: dict[str, Path], image: np.ndarray, rounds: int = 15) -> dict[str, float]:
    """Time one image (1, 3, H, W) in each ONNX file, side by side; → median in ms.

    One process will do as long as nothing but ONNX Runtime runs in it meanwhile.
    """
    calls = {name: partial(open_session(path).run, None, {"input": image}) for name, path in paths.items()}
    times = time_calls(calls, progress(range(rounds), "time"))
    return {name: float(np.median(values)) for name, values in times.items()}
