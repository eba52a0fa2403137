"""The whole chain in folds: what fp32 and INT8 answer to images that no step of making them has seen."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from utils.checkpoint import load_folds
from utils.config import InputError, cpu_info
from utils.datasets import ImageDataset, evaluation_transform, make_loader
from utils.files import remembered, sha256
from utils.model import build_model, classifier_names
from utils.onnx_quant.calibration import ImageFolderDataReader, calibrate, spread_evenly
from utils.onnx_quant.export import export_onnx, set_constants
from utils.onnx_quant.graph import prepare
from utils.onnx_quant.recipes import candidate_recipes, quantize_file
from utils.progress import progress
from utils.report import read_report
from utils.session import run_model


def answer_folds(
    run: Path,
    arch: str,
    index: pd.DataFrame,
    image_set: Callable[..., ImageDataset],
    calibration: int,
    limit: int | None = None,
) -> dict[str, np.ndarray]:
    """Export and quantize each fold's network and let both files answer the images it has not seen.

    The networks are those in ``folds_<arch>.pth`` of a run, the recipe is the one that its report names;
    `image_set(part, transform=...)` makes a Dataset of rows of `index`. Each network is calibrated on `calibration`
    images, spread evenly over those that it may know: nothing held out shapes anything. With `limit`, only so many
    folds are done. Returns logits (N, C) of ``onnx`` and ``int8``, nan where no fold answered; they are kept in
    ``folds_answers.json`` under a hash of what they depend on.
    """
    path, split = run / f"folds_{arch}.pth", run / "split.csv"
    folds, chosen = load_folds(path, sha256(split)), read_report(run).get("quantization", {})
    make_set = partial(image_set, transform=evaluation_transform(folds["preprocessing"]))
    parts = path, split, chosen.get("recipe"), chosen.get("sensitivity_db"), cpu_info(), calibration, limit

    def answer() -> dict[str, list]:
        logits = _answer_all(folds, index, make_set, chosen, calibration, limit)
        return {name: each.tolist() for name, each in logits.items()}

    return {name: np.array(each) for name, each in remembered(run / "folds_answers.json", parts, answer).items()}


def _answer_all(
    folds: dict, index: pd.DataFrame, image_set: Callable, chosen: dict, calibration: int, limit: int | None
) -> dict[str, np.ndarray]:
    model, _ = build_model(folds["arch"], len(folds["classes"]))
    model = model.cpu().eval()
    logits = {name: np.full((len(index), len(folds["classes"])), np.nan) for name in ("onnx", "int8")}
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in ("onnx", "prepared", "int8")}
        for fold in progress(folds["folds"][:limit], "folds"):
            held_out = index["path"].isin(fold["files"]).to_numpy()
            known = index[~held_out]
            seen = known.iloc[spread_evenly(len(known), calibration)]
            reader = ImageFolderDataReader(make_loader(image_set(seen), batch_size=16))
            _write_float(model, fold["state"], folds["preprocessing"]["image_size"], files["onnx"])
            prepare(files["onnx"], files["prepared"])
            recipe = _recipe(chosen, files["prepared"])
            ranges = calibrate(files["prepared"], Path(folder), reader, recipe["calibrate_method"])
            quantize_file(files["prepared"], files["int8"], ranges, reader.sample(32), **recipe)
            for name, answers in _answer(files, image_set(index[held_out])).items():
                logits[name][held_out] = answers
    return logits


def _write_float(model: nn.Module, state: dict, size: int, path: Path) -> None:
    """Export a fold's network; if only the last layer is its own, the file of the fold before gets new constants."""
    if foreign := model.load_state_dict(state, strict=False).unexpected_keys:
        raise InputError(f"the folds' networks are of another arch ({', '.join(foreign[:3])}): run train.ipynb again")
    if set(state) == set(classifier_names(model)) and path.exists():
        set_constants(path, path, {name: value.numpy() for name, value in state.items()})
    else:
        export_onnx(model, size, path)


def _recipe(chosen: dict, prepared: Path) -> dict:
    recipes = candidate_recipes(cpu_info(), prepared, list(chosen.get("sensitivity_db", {})))
    if chosen.get("recipe") not in recipes:
        raise InputError(
            f"report.json names the recipe {chosen.get('recipe')!r}, which this CPU has not: run onnx_quant.ipynb here"
        )
    return recipes[chosen["recipe"]]


def _answer(files: dict[str, Path], held_out: ImageDataset) -> dict[str, np.ndarray]:
    images = np.stack([image.numpy() for image, _ in held_out])
    return {name: run_model(files[name], images) for name in ("onnx", "int8")}
