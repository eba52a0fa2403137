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
    both = _join(model, float_model, {layer.name: twins[layer.name] for layer in layers})
    session = open_session(both.SerializeToString(), optimize="basic", in_order=True)
    shifts = session.run(None, {model.graph.input[0].name: images})
    for layer, shift in zip(layers, shifts, strict=True):
        _shift_bias(model, layer, shift.ravel())
    with whole_file(int8_path) as temporary:
        onnx.save(model, temporary)
    return {layer.name: float(np.abs(shift).max()) for layer, shift in zip(layers, shifts, strict=True)}


def _join(model: ModelProto, float_model: ModelProto, twins: dict[str, NodeProto]) -> ModelProto:
    """Put both graphs into one that corrects each layer with a twin, and whose outputs are the layers' shifts.

    Twins stand, and so run, next to each other: what is compared need not be kept in memory for long.
    """
    both, float_nodes, done = copy.deepcopy(model), list(float_model.graph.node), 0
    both.graph.initializer.extend(float_model.graph.initializer)
    del both.graph.node[:], both.graph.output[:]
    for node in model.graph.node:
        if node.name not in twins:
            both.graph.node.append(node)
            continue
        twin = twins[node.name]
        activation = _activation(float_model, twin)
        until = max(done, float_nodes.index(activation or twin) + 1)
        both.graph.node.extend(float_nodes[done:until])
        done = until
        both.graph.node.extend(_correct_output(node, twin, activation))
        both.graph.output.append(onnx.ValueInfoProto(name=_shift_name(node)))
    both.graph.node.extend(float_nodes[done:])
    return both


def _activation(float_model: ModelProto, twin: NodeProto) -> NodeProto | None:
    """Find the Relu or Clip that alone reads a twin's output."""
    readers = [node for node in float_model.graph.node if twin.output[0] in node.input]
    return readers[0] if len(readers) == 1 and readers[0].op_type in CLIPPING else None


def _shift_name(layer: NodeProto) -> str:
    return f"{layer.name}/shift"


def _correct_output(layer: NodeProto, twin: NodeProto, activation: NodeProto | None) -> list[NodeProto]:
    """Write a layer, and nodes that add to its output what it lacks, on average per channel, of its twin's."""
    scope, measured = layer.name, copy.deepcopy(layer)
    measured.output[0], float_output = f"{scope}/raw", twin.output[0]
    passed = activation.output[0] if activation else float_output  # equal to the twin's output where it counts
    axes = numpy_helper.from_array(np.array(SUMMED_AXES[layer.op_type]))
    return [
        measured,
        helper.make_node("Constant", [], [f"{scope}/axes"], value=axes),
        helper.make_node("Constant", [], [f"{scope}/one"], value_float=1.0),
        helper.make_node("Equal", [float_output, passed], [f"{scope}/counts"]),
        helper.make_node("Cast", [f"{scope}/counts"], [f"{scope}/weights"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", [f"{scope}/weights", f"{scope}/axes"], [f"{scope}/number"]),
        helper.make_node("Sub", [float_output, f"{scope}/raw"], [f"{scope}/difference"]),
        helper.make_node("Mul", [f"{scope}/difference", f"{scope}/weights"], [f"{scope}/lacking"]),
        helper.make_node("ReduceSum", [f"{scope}/lacking", f"{scope}/axes"], [f"{scope}/sum"]),
        helper.make_node("Max", [f"{scope}/number", f"{scope}/one"], [f"{scope}/divisor"]),  # where none counts: 0 / 1
        helper.make_node("Div", [f"{scope}/sum", f"{scope}/divisor"], [_shift_name(layer)]),
        helper.make_node("Add", [f"{scope}/raw", _shift_name(layer)], [layer.output[0]]),
    ]


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
