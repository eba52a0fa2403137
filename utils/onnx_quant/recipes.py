"""INT8 recipes: those that suit a CPU, what each is worth, and the rule by which one is chosen."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import pandas as pd
from onnxruntime.quantization import QuantType

from utils.config import SEED, THREADS, cpu_info
from utils.files import remembered
from utils.metrics import confusion, macro_f1, sqnr_db
from utils.onnx_quant.graph import stem
from utils.onnx_quant.ranges import CalibrationSet
from utils.parallel import progress
from utils.session import open_session, run_model
from utils.stopwatch import time_calls

LATENCY_TIE = 1.05  # times the fastest latency: what lies within is as fast, but for noise
SQNR_TIE = 1.0  # dB
ROUNDS = 15  # of timing
SIDE_BY_SIDE = min(2, THREADS)  # files that are made at a time: most of it is Python, which runs one thread at a time
X86 = {"x86_64", "amd64", "x86"}
LAYERS_ONLY = ("Conv", "Gemm", "MatMul", "Relu", "Clip")  # layers with weights, and activations that fuse with them
# what 8 bits are quick and close enough for besides; normalizations are not, nor is softmax
BETWEEN_LAYERS = ("Add", "Mul", "Sigmoid", "Concat", "Split", "Slice", "Pad", "Resize", "MaxPool", "AveragePool")
SHAPES = ("GlobalAveragePool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")
EVERY = LAYERS_ONLY + BETWEEN_LAYERS + SHAPES


class Recipe(NamedTuple):
    """How a float model becomes INT8: options of `quantize_static`, and whether the biases are corrected afterwards.

    `symmetric`: all zero points are 0, and biases stay in float.
    """

    activation_type: QuantType
    per_channel: bool = True
    reduce_range: bool = False
    symmetric: bool = False
    nodes_to_exclude: tuple[str, ...] = ()
    correct_biases: bool = True
    operators: tuple[str, ...] = EVERY
    note: str = ""  # what stays in float, in words
    reference: bool = False  # shown beside the others, and not to choose from

    @property
    def weight_bits(self) -> int:
        """How many bits weights have: 7 leave room in sums of 16 bits, with which x86 CPUs without VNNI make do."""
        return 7 if self.reduce_range else 8

    @property
    def extra_options(self) -> dict:
        """Options of `quantize_static` that have no name of their own; the logits stay as they are summed."""
        options = {"ActivationSymmetric": self.symmetric, "QuantizeBias": not self.symmetric}
        return options | {"OpTypesToExcludeOutputQuantization": ["Gemm"]}

    @property
    def name(self) -> str:
        """The recipe in the field's short form, such as ``U8S8 per-channel reduce-range``."""
        words = ["U8S8" if self.activation_type == QuantType.QUInt8 else "S8S8"]  # weights are signed everywhere
        words += ["symmetric"] * self.symmetric + ["per-channel"] * self.per_channel
        words += ["reduce-range"] * self.reduce_range
        words += ["uncorrected"] * (not self.correct_biases)
        return " ".join(words) + (f", {self.note}" if self.note else "")


Quantize = Callable[[Path, CalibrationSet, Path, Recipe], None]  # prepared file, images, file to write, recipe
# the original's recipe, too
LIBRARY_DEFAULT = Recipe(QuantType.QInt8, per_channel=False, correct_biases=False, reference=True)
SIGNED = Recipe(QuantType.QInt8)
UNSIGNED = Recipe(QuantType.QUInt8)
SEVEN_BITS = UNSIGNED._replace(reduce_range=True)
TYPES = {  # by TARGET; "here" depends on the CPU
    "any": SEVEN_BITS,
    "openvino": SEVEN_BITS,  # as its documentation advises ("Saturation issue"), for the same reason
    "web": SEVEN_BITS,  # WebAssembly's relaxed dot product is defined for 7 bits alone (onnxruntime#22794)
    "arm64": SIGNED,
    "tensorrt": SIGNED._replace(symmetric=True),  # it refuses other zero points, and biases in int32
}


def type_recipes(target: str, cpu: dict) -> list[Recipe]:
    """List the number types that suit a target, what should be best first; `cpu` is the one at hand (`cpu_info`).

    As ONNX Runtime's documentation advises: on x86 unsigned activations and signed weights, which without VNNI keep 7
    bits (`reduce_range`), as their 16-bit sums would overflow; with VNNI a bit less is only less exact. "any" takes
    these, which predict the same on ARM, too. Other targets have theirs in `TYPES`, and "here" takes what suits this
    CPU. One scale per output channel of the weights is closer than one per tensor, and no slower.
    """
    if target != "here":
        return [TYPES[target]]
    if cpu["architecture"].lower() not in X86:
        return [SIGNED, UNSIGNED]
    return [UNSIGNED] if cpu["vnni"] else [SEVEN_BITS, UNSIGNED]


def candidate_recipes(target: str, cpu: dict, prepared_path: Path) -> list[Recipe]:
    """List the recipes to choose from: the number types, as they are and with the stem in float, and two references.

    These show what bias correction is worth, and what ONNX Runtime's defaults, the original's recipe, would do. In
    networks that multiply, everything but the layers may stay in float: what is multiplied is a gate
    (squeeze-and-excitation, SiLU, attention), and rounded, its errors multiply, too.
    """
    types = type_recipes(target, cpu)
    model = ir.load(prepared_path)
    stem_nodes = tuple(node.name for node in stem(model))
    recipes = [*types, *(recipe._replace(nodes_to_exclude=stem_nodes, note="stem in float") for recipe in types)]
    if any(node.op_type == "Mul" for node in model.graph):
        recipes.append(types[0]._replace(operators=LAYERS_ONLY, note="layers only"))
    return [*recipes, types[0]._replace(correct_biases=False, reference=True), LIBRARY_DEFAULT]


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
