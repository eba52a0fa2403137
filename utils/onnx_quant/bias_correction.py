"""Bias correction for ONNX Runtime's QDQ models: on average, every layer's output is that of its float twin."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import compose

from utils.files import whole_file
from utils.onnx_quant.graph import strip
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
    float_model = ir.from_proto(compose.add_prefix(onnx.load(float_path), TWIN, rename_inputs=False))
    both = ir.load(int8_path)
    corrected = _join(both, float_model)
    session = open_session(ir.to_proto(both).SerializeToString(), optimize="basic", in_order=True)
    shifts = dict(zip(corrected, session.run(None, {both.graph.inputs[0].name: images}), strict=True))
    model = ir.load(int8_path)
    for layer in model.graph:
        if layer.name in shifts:
            _shift_bias(layer, shifts[layer.name].ravel())
    strip(model)
    with whole_file(int8_path) as temporary:
        ir.save(model, temporary)
    return {name: float(np.abs(shift).max()) for name, shift in shifts.items()}


def _join(model: ir.Model, float_model: ir.Model) -> list[str]:
    """Put the float graph into an INT8 one, correct each layer with a twin, and give out the shifts; → layers' names.

    Twins stand, and so run, next to each other: what is compared need not be kept in memory for long.
    """
    graph = model.graph
    float_graph = float_model.graph
    twins = {node.name.removeprefix(TWIN): node for node in float_graph if node.op_type in SUMMED_AXES}
    layers = [node for node in graph if node.name in twins and len(node.inputs) > 2]
    ir.convenience.replace_all_uses_with(float_graph.inputs, graph.inputs)
    for name in list(float_graph.initializers):
        graph.register_initializer(float_graph.initializers.pop(name))
    graph.outputs.clear()
    waiting = list(float_graph)
    for layer in layers:
        twin = twins[layer.name]
        passed = _passed_on(twin.outputs[0])
        while passed.producer() in waiting:
            node = waiting.pop(0)
            float_graph.remove(node)
            graph.insert_before(layer, node)
        graph.outputs.append(_correct_output(layer, twin.outputs[0], passed))
    return [layer.name for layer in layers]


def _passed_on(output: ir.Value) -> ir.Value:
    """Return what a Relu or Clip makes of an output that it alone reads, or else the output."""
    readers = output.consumers()
    return readers[0].outputs[0] if len(readers) == 1 and readers[0].op_type in CLIPPING else output


def _correct_output(layer: ir.Node, float_output: ir.Value, passed: ir.Value) -> ir.Value:
    """Add to a layer's output what it lacks, on average per channel, of its twin's; → this shift.

    Only what is `passed` on, and so is equal to the twin's output, counts.
    """
    raw = layer.outputs[0]
    readers = list(raw.uses())
    tape = ir.tape.Tape()
    axes = tape.op("Constant", [], {"value_ints": SUMMED_AXES[layer.op_type]})
    one = tape.op("Constant", [], {"value_float": 1.0})
    counts = tape.op("Cast", [tape.op("Equal", [float_output, passed])], {"to": ir.DataType.FLOAT})
    number = tape.op("ReduceSum", [counts, axes])
    lacking = tape.op("Mul", [tape.op("Sub", [float_output, raw]), counts])
    divisor = tape.op("Max", [number, one])  # where none counts: 0 / 1
    shift = tape.op("Div", [tape.op("ReduceSum", [lacking, axes]), divisor])
    corrected = tape.op("Add", [raw, shift])
    for position, node in enumerate(tape.nodes):
        node.outputs[0].name = f"{layer.name}/shift/{position}"
    layer.graph.insert_after(layer, tape.nodes)
    for reader, position in readers:
        reader.replace_input_with(position, corrected)
    return shift


def _shift_bias(layer: ir.Node, shift: np.ndarray) -> None:
    """Add a shift (C,) to a layer's bias: to the int32 behind its DequantizeLinear, or to the float if it has none."""
    bias = layer.inputs[2]
    dequantize = bias.producer()
    if dequantize is None:
        values = bias.const_value.numpy()
        shifted = values + shift
    else:
        bias, scale = dequantize.inputs[:2]
        values = bias.const_value.numpy()
        limits = np.iinfo(values.dtype)
        shifted = np.rint(values + shift / scale.const_value.numpy().astype(np.float64)).clip(limits.min, limits.max)
    bias.const_value = ir.tensor(shifted.astype(values.dtype), name=bias.name)
