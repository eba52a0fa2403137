"""Small ONNX networks, built node by node, and what onnx_quant.ipynb does with them."""

from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType
from torch import nn

from bench.notebooks import define
from utils.model import AllBlocks, ConvNet, replace_classifier
from utils.onnx_quant.ranges import CalibrationSet
from utils.onnx_quant.recipes import Recipe

CLASSES = ["사과", "cherry", "tomato"]
PREPROCESSING = {"image_size": 64, "interpolation": "bilinear", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
# 7 bits of weight: with 8, sums overflow on x86 CPUs without VNNI, and tests would measure that
PLAIN = Recipe(QuantType.QUInt8, reduce_range=True, correct_biases=False)


def all_blocks(classes: int = 3, seed: int = 0) -> AllBlocks:
    """The default network as it ships, its last layer on all blocks, with random weights and in eval mode."""
    torch.manual_seed(seed)
    model = AllBlocks(ConvNet(classes), image_size=64)
    replace_classifier(model, classes)
    return model.eval()


class ArrayReader(CalibrationDataReader):
    """Feed an array in batches."""

    def __init__(self, images: np.ndarray, batch_size: int = 4):
        self.images, self.batch_size = images, batch_size
        self.rewind()

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def rewind(self) -> None:
        self.start = 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = self.images[self.start : self.start + self.batch_size]
        self.start += self.batch_size
        return {"input": batch} if len(batch) else None


def save_net(path: Path, nodes: list, constants: dict[str, np.ndarray], size: int, classes: str | int = 3) -> Path:
    """Write nodes that lead from `input` (batch, 3, size, size) to `output` (batch, classes)."""
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, size, size])]
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", classes])]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "net", inputs, outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def residual_net(path: Path, seed: int = 0) -> Path:
    """Conv → Clip → Conv → Relu, Conv beside it, added, pooled, Gemm: a branch, and both activations that cut off."""
    generator = np.random.default_rng(seed)

    def layer(outputs: int, inputs: int, kernel: int) -> np.ndarray:
        return (generator.normal(size=(outputs, inputs, kernel, kernel)) / np.sqrt(inputs * kernel**2)).astype(
            np.float32
        )

    def bias(outputs: int) -> np.ndarray:
        return generator.normal(size=outputs).astype(np.float32) * np.float32(0.3)

    constants = {
        "w1": layer(8, 3, 3), "b1": bias(8), "w2": layer(8, 8, 3), "b2": bias(8), "w3": layer(8, 8, 1), "b3": bias(8),
        "w4": layer(3, 8, 1)[:, :, 0, 0], "b4": bias(3), "low": np.float32(0), "high": np.float32(6),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["input", "w1", "b1"], ["a"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["a", "low", "high"], ["a6"], "clip1"),
        helper.make_node("Conv", ["a6", "w2", "b2"], ["b"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["b"], ["b_relu"], "relu2"),
        helper.make_node("Conv", ["a6", "w3", "b3"], ["c"], "conv3"),
        helper.make_node("Add", ["b_relu", "c"], ["d"], "add"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], "pool"),
        helper.make_node("Flatten", ["e"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w4", "b4"], ["output"], "gemm", transB=1),
    ]
    return save_net(path, nodes, {name: np.asarray(value) for name, value in constants.items()}, size=16)


def calibration_set(prepared: Path, images: np.ndarray) -> CalibrationSet:
    """Calibrate a network on images (N, 3, H, W) that lie in memory."""

    def image_set(index: pd.DataFrame) -> list[tuple[torch.Tensor, int]]:
        return [(torch.from_numpy(images[row]), 0) for row in index["row"]]

    return CalibrationSet(prepared, image_set, pd.DataFrame({"row": range(len(images))}))


def to_int8(source: Path, target: Path, images: np.ndarray, edits: dict[str, str] | None = None, **changes) -> Path:
    """Quantize as the notebook does, calibrated on images (N, 3, H, W), by the plain recipe with some `changes`."""
    (quantize,) = define("onnx_quant", "quantize", edits=edits)
    quantize(source, calibration_set(source, images), target, PLAIN._replace(**changes))
    return target


def to_onnx(model: nn.Module, target: Path, edits: dict[str, str] | None = None, **details) -> Path:
    """Export as the notebook does; `details` are a checkpoint's."""
    (export,) = define("onnx_quant", "export", edits=edits, details={"preprocessing": PREPROCESSING, **details})
    export(model, target)
    return target
