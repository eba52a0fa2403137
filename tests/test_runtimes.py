"""The files mean the same elsewhere; where they do not, that is said."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from nets import PREPROCESSING, to_onnx

from bench.notebooks import define
from utils.compare_models.models import RUNTIMES, compare_runtimes
from utils.config import CHECKPOINTS, ROOT, InputError, cpu_info
from utils.datasets import ImageDataset, evaluation_transform
from utils.images import scan_folder
from utils.model import build_model, load_model, replace_classifier
from utils.onnx_quant.graph import prepare
from utils.onnx_quant.ranges import CalibrationSet
from utils.onnx_quant.recipes import type_recipes

INT8 = "the INT8 file"


def quantized(model: torch.nn.Module, size: int, folder):
    """Export, prepare and quantize as the notebook does, for every seventh embedded photo; → both files, the photos."""
    preprocessing = dict(PREPROCESSING, image_size=size)
    index = scan_folder(ROOT / "data" / "train")[0].iloc[::7]
    classes, transform = sorted(set(index["class"])), evaluation_transform(preprocessing)
    image_set = partial(ImageDataset, ROOT / "data" / "train", classes=classes, transform=transform)
    path = to_onnx(model.eval(), folder / "net.onnx", preprocessing=preprocessing)
    prepare(path, folder / "prepared.onnx")
    images = CalibrationSet(folder / "prepared.onnx", image_set, index)
    (quantize,) = define("onnx_quant", "quantize")
    quantize(folder / "prepared.onnx", images, folder / "int8.onnx", type_recipes("any", cpu_info())[0])
    return {"float": path, INT8: folder / "int8.onnx"}, image_set(index).stack().numpy()


@pytest.fixture(scope="module")
def pooled():
    """A network of timm with global pooling, laid out as `load_model` leaves it, whose answers are far apart."""
    torch.manual_seed(0)
    model, _ = build_model("efficientnet_lite0@96")
    replace_classifier(model, 3)
    model.get_classifier().weight.data *= 20
    return model.cpu()


@pytest.mark.parametrize("arch", ["conv_net", "pooled"])
def test_files_give_the_same_answers_in_every_runtime(arch, pooled, tmp_path):
    model, size = (pooled, 96) if arch == "pooled" else (load_model(CHECKPOINTS / "conv_net.pth")[0], 64)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:  # as OpenVINO stays once it is loaded
        found = alone.submit(compare_runtimes, *quantized(model, size, tmp_path)).result()
    assert set(found["runtime"]) == set(RUNTIMES) - {"ONNX Runtime"} and len(found) == 5
    assert (found["agreement"] >= 0.95).all(), found
    by_default = found["runtime"] == "OpenVINO"  # which counts in bfloat16 where the CPU can
    assert (found["sqnr_db"][(found["file"] == "float") & ~by_default] > 60).all()
    assert (found["sqnr_db"][by_default] > 20).all()
    low, high = zip(*found["ci95"], strict=True)
    assert (np.array(low) < found["agreement"]).all() and (np.array(high) >= found["agreement"] - 1e-9).all()
    assert (found["latency_ratio"].str[0] > 0).all()


def test_an_unknown_runtime_is_named():
    with pytest.raises(InputError, match=r"RUNTIMES \['TensorRT'\]: there are ONNX Runtime, .*OpenVINO"):
        compare_runtimes({}, np.zeros((1, 3, 8, 8)), ["TensorRT"])
