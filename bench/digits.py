"""Small networks that read scikit-learn's digits, and their INT8 files: real twins for bench/flip_risk.py."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import torch
from onnx import numpy_helper
from onnxruntime.quantization import QuantType
from scipy import ndimage
from sklearn.datasets import load_digits
from torch import nn

from bench.notebooks import define
from utils.onnx_quant import graph
from utils.onnx_quant.ranges import CalibrationSet
from utils.onnx_quant.recipes import LIBRARY_DEFAULT, Recipe
from utils.session import run_model

SIZE, TRAINED_ON, VARIANTS = 16, 500, 12
OURS = Recipe(QuantType.QUInt8, reduce_range=True)


def prepared(pictures: np.ndarray) -> np.ndarray:
    """Enlarge digits (N, 8, 8) of 0 to 16 to what the networks take: float32 (N, 3, 16, 16) of −1 to 1."""
    large = pictures.repeat(2, axis=1).repeat(2, axis=2)[:, None] / 8 - 1
    return np.ascontiguousarray(large.repeat(3, axis=1), dtype=np.float32)


def deformed(pictures: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Turn, shift and blur each digit a little, and add noise."""
    changed = []
    for picture in pictures:
        turned = ndimage.rotate(picture, generator.uniform(-15, 15), reshape=False, order=1)
        shifted = ndimage.shift(turned, generator.uniform(-0.7, 0.7, 2), order=1)
        changed.append(ndimage.gaussian_filter(shifted, generator.uniform(0, 0.7)))
    return np.clip(changed + generator.normal(0, 0.7, pictures.shape), 0, 16)


def train(images: np.ndarray, labels: np.ndarray, width: int) -> nn.Module:
    """Train a network of two convolutions."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * width, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(300):
        rows = torch.randint(len(images), (100,))
        loss = nn.functional.cross_entropy(model(torch.from_numpy(images)[rows]), torch.from_numpy(labels)[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def read_digits(folder: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Train networks of two sizes on 500 digits and quantize each in three ways, and with faults in three more.

    → name; labels, logits of the float file and of the INT8 file, for variants of the digits not trained on, and once
    more for these digits as they are.
    """
    export, quantize = define("onnx_quant", "export", "quantize", details={"preprocessing": {"image_size": SIZE}})
    pictures, labels = load_digits(return_X_y=True)
    pictures, order = pictures.reshape(-1, 8, 8), np.random.default_rng(0).permutation(len(labels))
    known, unseen = np.split(order, [TRAINED_ON])
    learned, variants = known.repeat(VARIANTS), unseen.repeat(VARIANTS)
    images = prepared(deformed(pictures[learned], np.random.default_rng(0)))
    many = prepared(deformed(pictures[variants], np.random.default_rng(1)))
    for width in (6, 16):
        model, source = train(images, labels[learned], width), folder / f"{width}.onnx"
        export(model, source)
        reference, plain = run_model(source, many), run_model(source, prepared(pictures[unseen]))
        for name, target in quantized(source, images[::VARIANTS], quantize):
            yield f"{width} channels; {name}", labels[variants], reference, run_model(target, many)
            found = run_model(target, prepared(pictures[unseen]))
            yield f"{width} channels, as they are; {name}", labels[unseen], plain, found


def quantized(source: Path, images: np.ndarray, quantize: Callable) -> Iterator[tuple[str, Path]]:
    """Make INT8 files of `source` by the notebook's function, and files that are faulty; → name, path."""
    path = source.with_name("prepared.onnx")
    graph.prepare(source, path)
    noise = np.random.default_rng(2).normal(0, 0.3, images.shape).astype(np.float32)
    tries = {
        "ours": (OURS, images),
        "uncorrected": (OURS._replace(correct_biases=False), images),
        "library's default": (LIBRARY_DEFAULT, images),
        "DAMAGE calibrated on noise": (OURS, noise),
        "DAMAGE saturated": (OURS, images * np.float32(0.2)),
    }
    for name, (recipe, calibrating) in tries.items():

        def image_set(index: pd.DataFrame, calibrating: np.ndarray = calibrating) -> list:
            return [(torch.from_numpy(calibrating[row]), 0) for row in index["row"]]

        calibration_set = CalibrationSet(path, image_set, pd.DataFrame({"row": range(len(calibrating))}))
        quantize(path, calibration_set, source.with_name("int8.onnx"), recipe)
        yield name, source.with_name("int8.onnx")
    spoil_channel(source.with_name("int8.onnx"))
    yield "DAMAGE a channel lost", source.with_name("int8.onnx")


def spoil_channel(path: Path) -> None:
    """Set the weights of one channel of the first convolution to 0."""
    model = onnx.load(path)
    tensor = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    weights = numpy_helper.to_array(tensor).copy()
    weights[0] = 0
    tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    onnx.save(model, path)
