"""Bias correction for ONNX Runtime's QDQ models: on average, every layer's output is that of its float twin."""

import copy
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, compose, helper, numpy_helper

from utils.files import whole_file
from utils.session import open_session

SUMMED_AXES = {"Conv": [0, 2, 3], "Gemm": [0]}  # of a layer's output, to get one value per channel
CLIPPING = {"Relu", "Clip"}  # activations that pass on one part of what they get and cut off the rest
TWIN = "float/"  # before every name of the float graph


def correct_biases(float_path: Path, int8_path: Path, images: np.ndarray) -> dict[str, float]:
    """Shift the biases in an INT8 file until each Conv and Gemm has its float twin's mean output per channel.

    Both graphs run side by side, once, over all `images` float32 (N, 3, H, W). Behind each layer its shift is computed
    from the two outputs and added at once, so that the next layer is measured behind layers already corrected. Where
    Relu or Clip follows, only outputs that it passes on count: errors in what is cut off do no harm, and mending them
    would do some to the rest. Layers without a bias stay as they are. Source: Nagel et al. 2019, arXiv 1906.04721,
    section 4.2, in its empirical form. Returns each layer's largest shift, in units of its output.
    """
    model, float_model = onnx.load(int8_path), compose.add_prefix(onnx.load(float_path), TWIN, rename_inputs=False)
    twins = {node.name.removeprefix(TWIN): node for node in float_model.graph.node if node.op_type in SUMMED_AXES}
    layers = [node for node in model.graph.node if node.name in twins and len(node.input) > 2]
    both = copy.deepcopy(model)
    both.graph.initializer.extend(float_model.graph.initializer)
    nodes = list(both.graph.node)
    del both.graph.node[:], both.graph.output[:]
    both.graph.node.extend(float_model.graph.node)
    for node in nodes:
        both.graph.node.append(node)
        if node.name in twins and len(node.input) > 2:
            both.graph.node.extend(_correct_output(both.graph.node[-1], twins[node.name], float_model))
    both.graph.output.extend(onnx.ValueInfoProto(name=_shift_name(layer)) for layer in layers)
    shifts = open_session(both.SerializeToString(), layouts=False).run(None, {model.graph.input[0].name: images})
    for layer, shift in zip(layers, shifts, strict=True):
        _shift_bias(model, layer, shift.ravel())
    with whole_file(int8_path) as temporary:
        onnx.save(model, temporary)
    return {layer.name: float(np.abs(shift).max()) for layer, shift in zip(layers, shifts, strict=True)}


def _shift_name(layer: NodeProto) -> str:
    return f"{layer.name}/shift"


def _correct_output(layer: NodeProto, twin: NodeProto, float_model: ModelProto) -> list[NodeProto]:
    """Write nodes that add, per channel, what a layer's output lacks on average of its twin's; changes the layer."""
    corrected, raw, difference = layer.output[0], f"{layer.name}/raw", f"{layer.name}/difference"
    layer.output[0] = raw
    readers = [node for node in float_model.graph.node if twin.output[0] in node.input]
    if len(readers) == 1 and readers[0].op_type in CLIPPING:
        mean = _mean_where_equal(layer, difference, twin.output[0], readers[0].output[0])
    else:
        mean = [helper.make_node("ReduceMean", [difference, _axes_name(layer)], [_shift_name(layer)])]
    axes = np.array(SUMMED_AXES[layer.op_type])
    return [
        helper.make_node("Sub", [twin.output[0], raw], [difference]),
        helper.make_node("Constant", [], [_axes_name(layer)], value=numpy_helper.from_array(axes)),
        *mean,
        helper.make_node("Add", [raw, _shift_name(layer)], [corrected]),
    ]


def _mean_where_equal(layer: NodeProto, values: str, before: str, after: str) -> list[NodeProto]:
    """Write nodes for the mean of `values` per channel where an activation leaves its input as it is."""
    scope, axes = layer.name, _axes_name(layer)
    return [
        helper.make_node("Equal", [before, after], [f"{scope}/passed"]),
        helper.make_node("Cast", [f"{scope}/passed"], [f"{scope}/weights"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [values, f"{scope}/weights"], [f"{scope}/weighted"]),
        helper.make_node("ReduceSum", [f"{scope}/weighted", axes], [f"{scope}/sum"]),
        helper.make_node("ReduceSum", [f"{scope}/weights", axes], [f"{scope}/count"]),
        helper.make_node("Constant", [], [f"{scope}/one"], value_float=1.0),
        helper.make_node("Max", [f"{scope}/count", f"{scope}/one"], [f"{scope}/divisor"]),  # where none passes: 0 / 1
        helper.make_node("Div", [f"{scope}/sum", f"{scope}/divisor"], [_shift_name(layer)]),
    ]


def _axes_name(layer: NodeProto) -> str:
    return f"{layer.name}/axes"


def _shift_bias(model: ModelProto, layer: NodeProto, shift: np.ndarray) -> None:
    """Add a shift (C,) to a layer's bias: to the int32 behind its DequantizeLinear, or to the float if it has none."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    source = next((node for node in model.graph.node if layer.input[2] in node.output), None)
    if source is None:
        bias = numpy_helper.to_array(constants[layer.input[2]])
        constants[layer.input[2]].CopyFrom(numpy_helper.from_array((bias + shift).astype(bias.dtype), layer.input[2]))
        return
    bias, scale = (numpy_helper.to_array(constants[name]) for name in source.input[:2])
    limits = np.iinfo(bias.dtype)
    shifted = np.rint(bias + shift / scale.astype(np.float64)).clip(limits.min, limits.max).astype(bias.dtype)
    constants[source.input[0]].CopyFrom(numpy_helper.from_array(shifted, source.input[0]))
