"""Bias correction for ONNX Runtime's QDQ models: on average, every layer's output is that of its float twin."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, compose, helper, numpy_helper
from onnxruntime import InferenceSession

from utils.files import whole_file
from utils.session import open_session

LAYERS = {"Conv": [0, 2, 3], "Gemm": [0]}  # the axes over which an output is summed per channel
CUTTING = {"Relu", "Clip"}  # activations that hand on one part of what they get and cut off the rest
BATCH = 8  # images at a time
TWIN = "float/"  # before every name of the float graph


def correct_biases(float_path: Path, int8_path: Path, images: np.ndarray) -> dict[str, float]:
    """Shift an INT8 model's biases, in the file, until each Conv and Gemm has its float twin's mean output per channel.

    Both graphs run side by side over `images` float32 (N, 3, H, W), piece by piece in topological order, so that each
    layer is measured behind layers already corrected. Whatever the depth, a layer runs twice: to be measured and,
    corrected, to feed the next; between pieces only what is still needed is kept. Where Relu or Clip follows, only
    outputs that it hands on count: errors in what is cut off do no harm, and mending them would do some to the rest.
    Layers without a bias stay as they are. Source: Nagel et al. 2019, arXiv 1906.04721, section 4.2, in its empirical
    form. Returns each layer's largest shift, in units of its output.
    """
    model, twin_model = onnx.load(int8_path), compose.add_prefix(onnx.load(float_path), TWIN, rename_inputs=False)
    nodes = [*twin_model.graph.node, *model.graph.node]
    twins = {node.name.removeprefix(TWIN): node for node in twin_model.graph.node if node.op_type in LAYERS}
    known, done, shifts = {model.graph.input[0].name: images}, set(), {}
    for layer in [node for node in model.graph.node if node.name in twins and len(node.input) > 2]:
        measure = _measure(layer, twins[layer.name], twin_model)
        piece = _behind(nodes, [*measure[0].input, *measure[1].input], known)
        ready = [node.output[0] for node in piece if node is not layer]
        done.update(ready)
        still_read = _still_read(nodes, done)
        keep = [name for name in [*known, *ready] if name in still_read]
        constants = [*twin_model.graph.initializer, *model.graph.initializer]
        session = _open_piece(model, [*piece, *measure], keep, constants, known)
        known, difference, counted = _run(session, keep, known)
        shift = difference / np.maximum(counted, 1)
        _shift_bias(model, layer, shift)
        shifts[layer.name] = float(np.abs(shift).max())
    with whole_file(int8_path) as temporary:
        onnx.save(model, temporary)
    return shifts


def _measure(layer: NodeProto, twin: NodeProto, twin_model: ModelProto) -> list[NodeProto]:
    """Write nodes that sum, per channel, a twin's output minus its layer's, and count the outputs that are summed."""
    readers = [node for node in twin_model.graph.node if twin.output[0] in node.input]
    cut = readers[0].output[0] if len(readers) == 1 and readers[0].op_type in CUTTING else twin.output[0]
    axes = helper.make_tensor("axes", onnx.TensorProto.INT64, [len(LAYERS[layer.op_type])], LAYERS[layer.op_type])
    return [
        helper.make_node("Sub", [twin.output[0], layer.output[0]], ["difference"]),
        helper.make_node("Equal", [twin.output[0], cut], ["handed_on"]),
        helper.make_node("Cast", ["handed_on"], ["one_or_zero"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["difference", "one_or_zero"], ["difference_that_counts"]),
        helper.make_node("Constant", [], ["axes"], value=axes),
        helper.make_node("ReduceSum", ["difference_that_counts", "axes"], ["summed"], keepdims=0),
        helper.make_node("ReduceSum", ["one_or_zero", "axes"], ["counted"], keepdims=0),
    ]


def _behind(nodes: Sequence[NodeProto], wanted: Iterable[str], known: dict[str, np.ndarray]) -> list[NodeProto]:
    """List the nodes, in order, that lead from `known` tensors to the `wanted` ones."""
    makers = {name: node for node in nodes for name in node.output}
    needed, names = set(), list(wanted)
    while names:
        name = names.pop()
        if name in makers and name not in known and name not in needed:
            needed.update(makers[name].output)
            names += makers[name].input
    return [node for node in nodes if node.output[0] in needed]


def _still_read(nodes: Sequence[NodeProto], done: set[str]) -> set[str]:
    """Name what the nodes not yet `done` read.

    Dequantizing is done again wherever it is needed, so that 8-bit integers are kept and not floats.
    """
    integers = {node.output[0]: node.input[0] for node in nodes if node.op_type == "DequantizeLinear"}
    readers = [node for node in nodes if node.output[0] not in done and node.output[0] not in integers]
    return {integers.get(name, name) for node in readers for name in node.input}


def _open_piece(
    model: ModelProto, nodes: list[NodeProto], keep: list[str], constants: list, known: dict[str, np.ndarray]
) -> InferenceSession:
    """Open nodes as a model of their own that gives what is new in `keep`, and the two sums."""
    used = {name for node in nodes for name in node.input}
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), ["N", *value.shape[1:]])
        for name, value in known.items()
        if name in used
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in [*(set(keep) - set(known)), "summed", "counted"]]
    graph = helper.make_graph(nodes, "piece", inputs, outputs, [each for each in constants if each.name in used])
    piece = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return open_session(piece.SerializeToString())


def _run(
    session, keep: list[str], known: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Run a piece in batches; → the tensors to keep, known or new, each (N, ...), and the two sums (C,)."""
    inputs, (*names, _, _) = ([value.name for value in each] for each in (session.get_inputs(), session.get_outputs()))
    batches = []
    for start in range(0, len(known[inputs[0]]), BATCH):
        batches.append(session.run(None, {name: known[name][start : start + BATCH] for name in inputs}))
    *columns, summed, counted = zip(*batches, strict=True)
    new = {name: np.concatenate(column) for name, column in zip(names, columns, strict=True)}
    kept = {name: known[name] if name in known else new[name] for name in keep}
    return kept, np.sum(summed, axis=0, dtype=np.float64), np.sum(counted, axis=0, dtype=np.float64)


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
