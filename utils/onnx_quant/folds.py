"""The whole chain in folds: what fp32 and INT8 answer to images that their network has not been trained on."""

import copy
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from torch import nn

from utils.config import InputError
from utils.datasets import ImageDataset, make_loader
from utils.model import classifier_names
from utils.onnx_quant.calibration import CalibrationSet, spread_evenly
from utils.onnx_quant.graph import prepare
from utils.onnx_quant.onnx_file import set_constants
from utils.progress import progress
from utils.session import open_session


class Chain(NamedTuple):
    """How the shipped network became ONNX and INT8, to do it again with a fold's.

    The network, the file that it was exported to, all images with the ranges of its activations, and the notebook's own
    functions: `export(model, target)` and `quantize(prepared_path, calibration_set, target)`.
    """

    model: nn.Module
    float_path: Path
    calibration_set: CalibrationSet
    export: Callable[[nn.Module, Path], None]
    quantize: Callable[[Path, CalibrationSet, Path], None]


def answer_folds(networks: Sequence[dict], chain: Chain, calibration: int) -> dict[str, np.ndarray]:
    """Export and quantize each fold's network, and let both files answer the images that it was not trained on.

    `networks` are those of train.ipynb's cross-validation. Each is calibrated on `calibration` images, spread evenly
    over those that it may know, so the held-out images shape neither its weights nor its ranges. They have shaped one
    thing: the INT8 recipe was chosen once, on training and validation images of the split. Returns logits (N, C) of
    ``onnx`` and ``int8``, nan where no network answered.
    """
    images, answers = chain.calibration_set, {}
    with tempfile.TemporaryDirectory() as folder:
        for network in progress(networks, "folds"):
            held_out = images.index["path"].isin(network["files"]).to_numpy()
            known = np.flatnonzero(~held_out)
            files = {name: Path(folder) / f"{name}.onnx" for name in ("onnx", "prepared", "int8")}
            same_ranges = _write_float(network["state"], chain, files["onnx"])
            prepare(files["onnx"], files["prepared"])
            shown = images.part(known[spread_evenly(len(known), calibration)])
            shown = shown if same_ranges else CalibrationSet(files["prepared"], shown.image_set, shown.index)
            chain.quantize(files["prepared"], shown, files["int8"])
            for name, logits in _answer(files, images.image_set(images.index[held_out])).items():
                every_logit = answers.setdefault(name, np.full((len(images), logits.shape[1]), np.nan))
                every_logit[held_out] = logits
    return answers


def _write_float(state: dict, chain: Chain, target: Path) -> bool:
    """Write a fold's network as ONNX; → whether its activations, up to the logits, are those of the shipped one."""
    model = copy.deepcopy(chain.model)
    if foreign := model.load_state_dict(state, strict=False).unexpected_keys:
        raise InputError(f"the folds' networks are of another arch ({', '.join(foreign[:3])}): run train.ipynb again")
    if set(state) != set(classifier_names(model)):
        chain.export(model, target)
        return False
    shutil.copy(chain.float_path, target)  # only the last layer differs
    set_constants(target, {name: value.numpy() for name, value in state.items()})
    return onnx.load(target).graph.node[-1].op_type == "Gemm"  # whose output stays in float, and needs no range


def _answer(files: dict[str, Path], held_out: ImageDataset) -> dict[str, np.ndarray]:
    """Run both files on the images held out, a batch in memory at a time; → logits (M, C) of each."""
    sessions = {name: open_session(files[name]) for name in ("onnx", "int8")}
    logits = {name: [] for name in sessions}
    for images, _ in make_loader(held_out, batch_size=32):
        for name, session in sessions.items():
            logits[name].append(session.run(None, {"input": images.numpy()})[0])
    return {name: np.concatenate(batches) for name, batches in logits.items()}
