"""The novelty score as a second output: how far an image's features lie from the nearest class, in float."""

from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, compose, numpy_helper, parser

from utils.onnx_quant.graph import tensor_shapes
from utils.session import open_session, run_session

# what `Detector.distances` in utils/train/novelty.py computes
DISTANCE = """<ir_version: {ir_version}, opset_import: ["": {opset}]>
distance (float[batch, features] novelty_features) => (float[batch] novelty) <
    int64[1] novelty_axis = {{1}}, int64[1] novelty_last_axis = {{2}}, float novelty_tiny = {{1e-12}}
> {{
    novelty_length = ReduceL2 <keepdims = 1> (novelty_features, novelty_axis)
    novelty_divisor = Max (novelty_length, novelty_tiny)
    novelty_directions = Div (novelty_features, novelty_divisor)
    novelty_axes = Cast <to = 1> (novelty_weight)
    novelty_places = Gemm <transB = 1> (novelty_directions, novelty_axes, novelty_bias)
    novelty_each_place = Unsqueeze (novelty_places, novelty_axis)
    novelty_steps = Sub (novelty_each_place, novelty_centers)
    novelty_of_classes = ReduceSumSquare <keepdims = 0> (novelty_steps, novelty_last_axis)
    novelty_nearest = ReduceMin <keepdims = 0> (novelty_of_classes, novelty_axis)
    novelty_center = Cast <to = 1> (novelty_mean)
    novelty_from_mean = Sub (novelty_directions, novelty_center)
    novelty_whole = ReduceSumSquare <keepdims = 0> (novelty_from_mean, novelty_axis)
    novelty_along = Mul (novelty_places, novelty_deviations)
    novelty_along_axes = ReduceSumSquare <keepdims = 0> (novelty_along, novelty_axis)
    novelty_difference = Sub (novelty_whole, novelty_along_axes)
    novelty_off_axes = Relu (novelty_difference)
    novelty_variance = Mul (novelty_rest, novelty_rest)
    novelty_rest_of_it = Div (novelty_off_axes, novelty_variance)
    novelty_square = Add (novelty_nearest, novelty_rest_of_it)
    novelty = Sqrt (novelty_square)
}}"""


def add_novelty(model: ModelProto, detector: dict[str, np.ndarray]) -> ModelProto:
    """Give a classifier, in float or INT8, a second output `novelty` float32 (batch,), from the last block's features.

    `detector` has the arrays of `utils.train.novelty.Detector`, in the order of torch's features.
    """
    last = _last_features(model)
    order = _order_of_features(model, last)
    constants = {name: np.asarray(values) for name, values in detector.items()}
    constants.update(weight=constants["weight"][:, order], mean=constants["mean"][order])
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    distance = parser.parse_model(DISTANCE.format(ir_version=model.ir_version, opset=opset))
    tensors = [numpy_helper.from_array(values, f"novelty_{name}") for name, values in constants.items()]
    distance.graph.initializer.extend(tensors)
    features = onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, ["batch", len(order)])
    answer = model.graph.output[0].name
    model.graph.output.append(features)
    whole = compose.merge_models(model, distance, io_map=[(last, "novelty_features")])
    whole.graph.output.sort(key=lambda value: value.name != answer)
    return whole


def _last_features(model: ModelProto) -> str:
    """Name the tensor that the network's own last layer sees: of joined or split blocks the last one."""
    producers = {name: node for node in model.graph.node for name in node.output}
    layer = producers[model.graph.output[0].name]
    if layer.op_type == "Sum":  # see `graph.split_last_layer`
        layer = producers[layer.input[-1]]
    if layer.op_type not in ("Gemm", "MatMul"):
        layer = [node for node in model.graph.node if node.op_type in ("Gemm", "MatMul")][-1]
    joined = producers.get(layer.input[0])
    return joined.input[-1] if joined and joined.op_type == "Concat" else layer.input[0]


def _order_of_features(model: ModelProto, features: str) -> np.ndarray:
    """Say which of torch's features each of a tensor's is: see `graph.flatten_channels_last`."""
    producers = {name: node for node in model.graph.node for name in node.output}
    shapes, node = tensor_shapes(model), producers[features]
    while node.op_type in ("QuantizeLinear", "DequantizeLinear", "Reshape", "Flatten"):
        node = producers[node.input[0]]
    if node.op_type == "Transpose" and node.name.endswith("_turn"):
        channels, height, width = shapes[node.input[0]][1:]
        return np.arange(channels * height * width).reshape(channels, height, width).transpose(1, 2, 0).ravel()
    return np.arange(shapes[features][-1])


def novelty_agreement(float_path: Path, int8_path: Path, details: dict, images: np.ndarray) -> float:
    """Share of images (N, 3, H, W) of which INT8 says as fp32 does whether they are unknown; 1 without a novelty."""
    if "novelty" not in details:
        return 1.0
    unknown = []
    for path in (float_path, int8_path):
        file = add_novelty(onnx.load(path), details["novelty"]).SerializeToString()
        _, distances = run_session(open_session(file, threads=1), images)
        unknown.append(distances > details["novelty_above"])
    return float((unknown[0] == unknown[1]).mean())
