"""Changes to an ONNX graph that leave every prediction as it was, and make ONNX Runtime treat INT8 as it should."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxruntime.quantization.shape_inference import quant_pre_process

from utils.files import whole_file

LAYERS = ("Conv", "Gemm")  # operators with weights and a bias
CHANNELS_LAST = (0, 2, 3, 1)  # the axes (N, C, H, W) in the order (N, H, W, C)


def prepare(source: Path, target: Path) -> None:
    """Ready a graph for quantization: fuse what can be fused, as ONNX Runtime asks for, then the changes below."""
    with whole_file(target) as temporary:
        quant_pre_process(source, temporary, auto_merge=True)
        model = ir.load(temporary)
        infer_shapes(model)
        pool_in_integers(model)
        split_last_layer(model)
        flatten_channels_last(model)
        keep_pooling_in_place(model)
        passes.NameFixPass()(model)
        strip(model)
        infer_shapes(model)
        ir.save(model, temporary)


def infer_shapes(model: ir.Model) -> None:
    """Let every tensor know its type and shape, as far as they follow from the inputs'."""
    passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)


def strip(model: ir.Model) -> None:
    """Drop what no reader needs: stack traces with paths of this machine, inferred shapes, unused operator sets."""
    passes.ClearMetadataAndDocStringPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    for value in ir.convenience.create_value_mapping(model.graph).values():
        value.metadata_props.clear()
        value.doc_string = None
        if not value.is_graph_input() and not value.is_graph_output():
            value.shape = None
            value.type = None


def stem(model: ir.Model) -> list[ir.Node]:
    """List the nodes before the second layer with weights: Conv, Gemm, or MatMul by a constant."""
    nodes = list(model.graph)
    layers = [
        position
        for position, node in enumerate(nodes)
        if node.op_type in LAYERS or (node.op_type == "MatMul" and any(value.is_initializer() for value in node.inputs))
    ]
    return nodes[: layers[1]] if len(layers) > 1 else []


def pool_in_integers(model: ir.Model) -> None:
    """Write means over height and width as GlobalAveragePool: unlike ReduceMean, ONNX Runtime has it in 8 bits."""
    for mean in [node for node in model.graph if node.op_type == "ReduceMean" and len(node.inputs) == 2]:
        maps, axes = mean.inputs
        over = [] if axes.const_value is None else axes.const_value.numpy()
        if maps.shape is None or len(maps.shape) != 4 or sorted(axis % 4 for axis in over) != [2, 3]:
            continue
        new = [ir.node("GlobalAveragePool", [maps])]
        if not mean.attributes.get_int("keepdims", 1):
            new.append(ir.node("Flatten", new[0].outputs))
        ir.convenience.replace_nodes_and_values(model.graph, mean, [mean], new, mean.outputs, new[-1].outputs)


def split_last_layer(model: ir.Model) -> None:
    """Give each block's features a last layer of their own, and add up their logits.

    Joined, all blocks would share one scale in 8 bits, and the small numbers of some would be rounded away. The last
    part, behind the features of the network's own last layer, keeps the bias.
    """
    gemm = model.graph.outputs[0].producer()
    joined = gemm.inputs[0].producer()
    if joined is None or joined.op_type != "Concat" or not transposes_weights(gemm):
        return
    weight = gemm.inputs[1].const_value.numpy()
    biases = np.zeros((len(joined.inputs), len(weight)), weight.dtype)
    if len(gemm.inputs) > 2:  # a bias of zeros was optimized away
        biases[-1] = gemm.inputs[2].const_value.numpy()
    ends = np.cumsum([features.shape[1] for features in joined.inputs])
    tape = ir.tape.Tape()
    parts = []
    for number, columns in enumerate(np.split(weight, ends[:-1], axis=1)):
        constants = {"weight": columns.copy(), "bias": biases[number]}
        tensors = [ir.tensor(values, name=f"{gemm.name}_{part}_{number}") for part, values in constants.items()]
        inputs = [joined.inputs[number], *map(tape.initializer, tensors)]
        parts.append(tape.op("Gemm", inputs, {"transB": 1}))
    total = tape.op("Sum", parts)
    for constant in tape.initializers:
        model.graph.register_initializer(constant)
    ir.convenience.replace_nodes_and_values(model.graph, gemm, [gemm, joined], tape.nodes, gemm.outputs, [total])
    passes.RemoveUnusedNodesPass()(model)


def flatten_channels_last(model: ir.Model) -> None:
    """Flatten feature maps as (N, H, W, C) before the last layer, whose weights are reordered to match.

    ONNX Runtime's fast 8-bit kernels work channels last. Flattened channels first, the pooling before runs in a kernel
    five times slower.
    """
    for flatten in [node for node in model.graph if node.op_type in ("Reshape", "Flatten")]:
        maps = flatten.inputs[0]
        users = flatten.outputs[0].consumers()
        if not users or not transposes_weights(users[0]) or maps.shape is None or len(maps.shape) != 4:
            continue
        sizes = maps.shape[1:]
        if not all(isinstance(size, int) for size in sizes) or sizes[1:] == (1, 1):
            continue
        weight = users[0].inputs[1]
        values = weight.const_value.numpy()  # (classes, C·H·W)
        values = values.reshape(-1, *sizes).transpose(CHANNELS_LAST).reshape(values.shape)
        weight.const_value = ir.tensor(values, name=weight.name)
        turn = ir.node("Transpose", [maps], {"perm": CHANNELS_LAST})
        model.graph.insert_before(flatten, turn)
        flatten.replace_input_with(0, turn.outputs[0])


def keep_pooling_in_place(model: ir.Model) -> None:
    """Put a Clip that clips nothing behind each max-pooling of the stem.

    If the stem stays float, ONNX Runtime moves the quantization that follows before the pooling, which then runs in a
    kernel ten times slower. The Clip prevents that and disappears into the quantization when the file is loaded.
    """
    for pooling in [node for node in stem(model) if node.op_type == "MaxPool"]:
        users = list(pooling.outputs[0].uses())
        lowest = ir.tensor(np.finfo(np.float32).min, name=f"{pooling.name}_lowest")
        lowest = ir.tape.Tape(model.graph).initializer(lowest)
        clip = ir.node("Clip", [pooling.outputs[0], lowest])
        model.graph.insert_after(pooling, clip)
        for user, position in users:
            user.replace_input_with(position, clip.outputs[0])


def transposes_weights(node: ir.Node) -> bool:
    """Tell whether a node is a Gemm with weights (classes, features), as torch exports it."""
    return node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1


def count_operators(path: Path) -> Counter:
    """Count the graph's nodes by operator."""
    return Counter(node.op_type for node in ir.load(path).graph)
