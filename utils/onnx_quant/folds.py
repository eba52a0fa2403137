"""The whole chain in folds: what fp32 and INT8 predict of images that their network was not trained on."""

import copy
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from utils import checkpoint, features, parallel
from utils.config import InputError
from utils.datasets import make_loader
from utils.model import classifier_names
from utils.onnx_quant.candidates import SIDE_BY_SIDE
from utils.onnx_quant.export import check_parity
from utils.onnx_quant.graph import prepare
from utils.onnx_quant.ranges import CalibrationSet, evenly_spaced
from utils.onnx_quant.recipes import Quantize, Recipe
from utils.session import open_session, run_session


class Pipeline(NamedTuple):
    """How the shipped network became ONNX and INT8, to do it again with a fold's.

    The network, the file that it was exported to, all images with the ranges of its activations, the recipe, and the
    notebook's own functions: `export(model, target)` and `quantize(prepared_path, calibration_set, target, recipe)`.
    """

    model: nn.Module
    float_path: Path
    calibration_set: CalibrationSet
    recipe: Recipe
    export: Callable[[nn.Module, Path], None]
    quantize: Quantize


def load_networks(path: Path, split_hash: str, model: nn.Module, limit: int | None = None) -> list[dict]:
    """Read the networks of train.ipynb's cross-validation, the first `limit` of them; None: all, 0: no file is read.

    Raises InputError when the file is absent, damaged, or belongs to another split or network.
    """
    if limit == 0:
        return []
    return checkpoint.load_folds(path, split_hash, features.fingerprint(model, whole=True))["folds"][:limit]


def predict_folds(networks: Sequence[dict], pipeline: Pipeline, calibration: int) -> dict[str, np.ndarray]:
    """Export and quantize each fold's network, and let both files predict the images that it was not trained on.

    `networks` are those of train.ipynb's cross-validation. Each is calibrated on `calibration` images, spread evenly
    over those that it may know, so the held-out images shape neither its weights nor its ranges. They have shaped one
    thing: the INT8 recipe was chosen once, on training and validation images of the split. Returns logits (N, C) of
    ``onnx`` and ``int8``, nan where no network predicted.
    """
    logits, last = {}, set(classifier_names(pipeline.model))
    only_last = last <= set(ir.load(pipeline.float_path).graph.initializers)
    only_last &= all(set(network["state"]) == last for network in networks)
    threads = SIDE_BY_SIDE if only_last else 1  # torch, which may have to export the others, does one at a time
    predict = partial(_predict_fold, pipeline, pipeline.float_path.read_bytes(), calibration)
    for held_out, predicted in parallel.run(predict, networks, "folds", threads):
        for name, rows in predicted.items():
            logits.setdefault(name, np.full((len(held_out), rows.shape[1]), np.nan))[held_out] = rows
    return logits


def agreement(logits: dict[str, np.ndarray]) -> dict:
    """Count the images predicted out of fold, and the share for which INT8 predicts what fp32 does, if any."""
    if not logits:
        return {"images": 0, "agreement": None}
    known = ~np.isnan(logits["onnx"]).any(axis=1)
    same = logits["onnx"][known].argmax(axis=1) == logits["int8"][known].argmax(axis=1)
    return {"images": int(known.sum()), "agreement": float(same.mean())}


def _predict_fold(
    pipeline: Pipeline, float_file: bytes, calibration: int, network: dict
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Predict the images that one network was not trained on; a worker of a cluster sees no file but the images.

    Returns which images these are (N,), and the logits (M, C) of both files.
    """
    images = pipeline.calibration_set
    held_out = images.index["path"].isin(network["files"]).to_numpy()
    known = np.flatnonzero(~held_out)
    shown = known[evenly_spaced(len(known), calibration)]
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in ("onnx", "prepared", "int8")}
        files["onnx"].write_bytes(float_file)
        ranges = images.part(shown).ranges if _write_float(network["state"], pipeline, files["onnx"]) else None
        prepare(files["onnx"], files["prepared"])
        shown_set = CalibrationSet(files["prepared"], images.image_set, images.index.iloc[shown], ranges)
        pipeline.quantize(files["prepared"], shown_set, files["int8"], pipeline.recipe)
        precise = pipeline.recipe.weight_bits == 8
        sessions = {name: open_session(files[name], threads=1, precise=precise) for name in ("onnx", "int8")}
        logits = {name: [] for name in sessions}
        for batch, _ in make_loader(images.image_set(images.index[held_out]), batch_size=32):
            for name, session in sessions.items():
                logits[name].append(run_session(session, batch.numpy())[0])
    return held_out, {name: np.concatenate(batches) for name, batches in logits.items()}


def _write_float(state: dict, pipeline: Pipeline, target: Path) -> bool:
    """Turn the shipped network's file into a fold's; → whether its activations, up to the logits, stay the same.

    Its weights are replaced, which takes a tenth of the time of an export. A file that then does not give the network's
    logits, as where the exporter has computed with weights, is exported.
    """
    model = copy.deepcopy(pipeline.model)
    if foreign := model.load_state_dict(state, strict=False).unexpected_keys:
        raise InputError(f"the folds' networks are of another arch ({', '.join(foreign[:3])}): run train.ipynb again")
    onnx_model = ir.load(target)
    constants = onnx_model.graph.initializers
    last = classifier_names(model)
    if not set(last) <= set(constants):  # no bias where it is zeros
        pipeline.export(model, target)
        return False
    only_last = set(state) == set(last)  # then all the rest stays as it is, to the bit
    for name, values in (state if only_last else exported_weights(model)).items():
        if name in constants:
            constants[name].const_value = ir.tensor(values.numpy(), name=name)
    ir.save(onnx_model, target)
    if only_last:
        return onnx_model.graph.outputs[0].producer().op_type == "Gemm"  # its output stays in float: needs no range
    try:
        check_parity(model, target, pipeline.calibration_set.sample(2), batch_sizes=(2,))
    except InputError:
        pipeline.export(model, target)
    return False


def exported_weights(model: nn.Module) -> dict[str, Tensor]:
    """Name the weights of a network as an exported file has them: those of a batch norm are part of its convolution."""
    weights = {name: values.detach() for name, values in model.state_dict().items()}
    before, before_name = None, ""
    for name, module in model.named_modules():
        if isinstance(before, nn.Conv2d) and isinstance(module, nn.BatchNorm2d):
            fused = fuse_conv_bn_eval(before, module)
            weights[f"{before_name}.weight"] = fused.weight.detach()
            new = "bias" if before.bias is not None else "weight_bias"  # which the exporter makes
            weights[f"{before_name}.{new}"] = fused.bias.detach()
        if not list(module.children()):
            before, before_name = module, name
    return weights
