"""INT8 candidates: a file for each recipe, what each is worth, and the rule by which one is chosen."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from utils.config import SEED, THREADS, cpu_info
from utils.files import remembered
from utils.metrics import confusion, macro_f1, sqnr_db
from utils.onnx_quant.ranges import CalibrationSet
from utils.onnx_quant.recipes import Quantize, Recipe
from utils.parallel import progress
from utils.plots import COLORS, MODEL_COLORS
from utils.session import open_session, run_model
from utils.stopwatch import time_calls

LATENCY_TIE = 1.05  # times the fastest latency: what lies within is as fast, but for noise
SQNR_TIE = 1.0  # dB
ROUNDS = 15  # of timing
SIDE_BY_SIDE = min(2, THREADS)  # files that are made at a time: most of it is Python, which runs one thread at a time


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
        """Score a file, as `score` does, with exact sums."""
        logits = [run_model(file, self.images, precise=True) for file in (self.float_path, path)]
        return score(self.labels, *logits)


def load_sample(float_path: Path, image_set: Callable, index: pd.DataFrame, limit: int) -> ScoringSet:
    """Read some rows of the index into memory, drawn at random where there are more than `limit`.

    `image_set` makes an ImageDataset of rows.
    """
    rows = index.sample(min(limit, len(index)), random_state=SEED).sort_index()
    dataset = image_set(rows)
    return ScoringSet(float_path, rows, dataset.stack().numpy(), np.array(dataset.labels))


def score(labels: np.ndarray, reference: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Score logits (N, C) against the labels, and against the float model's logits as `reference`."""
    predictions = logits.argmax(1)
    num_classes = logits.shape[1]
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

    Columns: recipe (its name), what `score` says, reference, valid_macro_f1, bytes, latency_ms. `cache` is a JSON file.
    """
    images = [rows["sha256"].tolist() for rows in (calibration_set.index, scoring.index)]
    parts = [scoring.float_path, images, list(recipes), quantize, cpu_info()]
    return pd.DataFrame(remembered(cache, parts, lambda: _try(recipes, quantize, calibration_set, scoring)))


def _try(
    recipes: Sequence[Recipe], quantize: Quantize, calibration_set: CalibrationSet, scoring: ScoringSet
) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        paths = {"fp32": scoring.float_path}
        precise = {recipe.name: recipe.weight_bits == 8 for recipe in recipes}  # as the file will be opened
        paths |= quantize_all({recipe.name: (calibration_set, recipe) for recipe in recipes}, quantize, Path(folder))
        logits = {}
        for name, path in progress(paths.items(), "score"):
            logits[name] = run_model(path, scoring.images, precise=precise.get(name, False))
        sizes = {name: path.stat().st_size for name, path in paths.items()}
        latency = time_models(paths, scoring.images[:1], [name for name in precise if precise[name]])
    valid = (scoring.index["split"] == "valid").to_numpy()
    rows = []
    for name, found in logits.items():
        row = {"recipe": name, **score(scoring.labels, logits["fp32"], found)}
        row["reference"] = any(recipe.name == name and recipe.reference for recipe in recipes)
        row["valid_macro_f1"] = macro_f1(scoring.labels[valid], found[valid].argmax(1), found.shape[1])
        rows.append(row | {"bytes": sizes[name], "latency_ms": latency[name]})
    return rows


def quantize_all(wanted: dict[str, tuple[CalibrationSet, Recipe]], quantize: Quantize, folder: Path) -> dict[str, Path]:
    """Write an INT8 file for each name, some side by side; → their paths in the `folder`.

    Each is made from a copy of the prepared file: ONNX Runtime 1.32 writes a file of a fixed name beside it.
    """
    paths = {name: folder / f"int8_{number}.onnx" for number, name in enumerate(wanted)}

    def write(name: str) -> None:
        images, recipe = wanted[name]
        source = shutil.copy(images.prepared_path, paths[name].with_suffix(".prepared.onnx"))
        quantize(source, images, paths[name], recipe)

    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        list(progress(pool.map(write, wanted), "quantize", len(wanted)))
    return paths


def score_calibrations(
    sets: dict[str, CalibrationSet], quantize: Quantize, recipe: Recipe, scoring: ScoringSet, cache: Path
) -> dict[str, dict[str, float]]:
    """Score the files that a recipe makes with different calibration images; `cache` is a JSON file."""

    def compute() -> dict[str, dict[str, float]]:
        with tempfile.TemporaryDirectory() as folder:
            paths = quantize_all({name: (images, recipe) for name, images in sets.items()}, quantize, Path(folder))
            return {name: scoring.score(path) for name, path in paths.items()}

    images = {name: images.index["sha256"].tolist() for name, images in sets.items()}
    parts = [scoring.float_path, images, scoring.index["sha256"].tolist(), recipe, quantize, cpu_info()]
    return remembered(cache, parts, compute)


def time_models(paths: dict[str, Path], image: np.ndarray, precise: Sequence[str] = ()) -> dict[str, float]:
    """Time one image (1, 3, H, W) in each ONNX file, side by side, some with `precise` sums; → median in ms.

    One process will do as long as nothing but ONNX Runtime runs in it meanwhile.
    """
    sessions = {name: open_session(path, precise=name in precise) for name, path in paths.items()}
    calls = {name: partial(session.run, None, {"input": image}) for name, session in sessions.items()}
    times = time_calls(calls, progress(range(ROUNDS), "time"))
    return {name: float(np.median(values)) for name, values in times.items()}


def within_budget(table: pd.DataFrame, budget: dict[str, float]) -> pd.Series:
    """Tell which files keep the predictions of the float one, the table's first row.

    Columns: agreement, macro_f1, worst_recall. `budget` says how much of macro_f1 and of worst_recall may be lost, and
    the least agreement.
    """
    within = table["agreement"] >= budget["agreement"]
    for name in ("macro_f1", "worst_recall"):
        within &= table[name].iloc[0] - table[name] <= budget[name] + 1e-9  # differences of floats are not exact
    return within


def choose(table: pd.DataFrame, timed: bool = True) -> int | str:
    """Choose the fastest INT8 file within the budget; → its row's label. The first row is the float file's.

    Where the file is not `timed` on what it is for, speed does not count.

    Columns: latency_ms, agreement, sqnr_db, within_budget, reference; the simplest recipes come first. Among those that
    are as fast but for noise, and as near to fp32 within a decibel, the first one. If none is within the budget, speed
    does not count: the one with most of fp32's predictions, and of several the nearest to it. References are left out.
    """
    candidates = table.iloc[1:]
    candidates = candidates[~candidates["reference"]]
    within = candidates[candidates["within_budget"]]
    if within.empty:
        return candidates.sort_values(["agreement", "sqnr_db"], ascending=False, kind="stable").index[0]
    fast = within[within["latency_ms"] <= LATENCY_TIE * within["latency_ms"].min()] if timed else within
    return (fast["sqnr_db"] >= fast["sqnr_db"].max() - SQNR_TIE).idxmax()


def draw(table: pd.DataFrame, chosen: int, ax: Axes | None = None) -> Axes:
    """Draw candidates: SQNR against latency in ms, hollow outside the budget, with their rows' numbers.

    Columns: recipe, latency_ms, sqnr_db, within_budget. The first row is the float file's: a line marks its latency.
    """
    ax = ax or plt.gca()
    for number, row in table.iloc[1:].iterrows():
        color = MODEL_COLORS["int8"] if number == chosen else COLORS[7]
        place = (row["latency_ms"], row["sqnr_db"])
        ax.scatter(*place, s=50, color=color if row["within_budget"] else "none", edgecolors=color, zorder=2)
        label = f"{number}: {row['recipe']}" if number == chosen else str(number)
        offset = (-4, 9) if number == chosen else (5, -9)
        ax.annotate(label, place, xytext=offset, textcoords="offset points", color=color, zorder=3)
    fp32_ms = table["latency_ms"].iloc[0]
    ax.axvline(fp32_ms, color=MODEL_COLORS["onnx"], lw=1, ls=":")
    ax.annotate(" fp32", (fp32_ms, 0.02), xycoords=("data", "axes fraction"), color=MODEL_COLORS["onnx"])
    ax.margins(y=0.12)
    ax.set(xlabel="latency of one image, ms (median)", ylabel="SQNR of the logits, dB", xlim=(0, None))
    ax.set_title("Recipes, by their numbers in the table; hollow: outside the budget")
    return ax
