"""Changes to an ONNX graph that leave every answer as it was, and make ONNX Runtime treat INT8 as it should."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnxruntime.quantization.shape_inference import quant_pre_process

from utils.files import whole_file

LAYERS = ("Conv", "Gemm")  # operators with weights and a bias


def strip(model: ModelProto) -> None:
    """Drop what no reader needs: stack traces with paths of this machine, inferred shapes, unused operator sets."""
    for part in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    del model.graph.value_info[:]
    used = {node.domain for node in model.graph.node}
    versions = {entry.domain: entry.version for entry in model.opset_import if entry.domain in used}
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions.items())


def layers(model: ModelProto) -> list[NodeProto]:
    """List the nodes with weights: Conv, Gemm, and MatMul by a constant, but not MatMul of two activations."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type in LAYERS or (node.op_type == "MatMul" and weights.intersection(node.input))
    ]


def stem(model: ModelProto) -> list[NodeProto]:
    """List the nodes before the second layer with weights: the first layer and what follows it."""
    nodes, weighted = list(model.graph.node), layers(model)
    return nodes[: nodes.index(weighted[1])] if len(weighted) > 1 else []


def pool_in_integers(model: ModelProto) -> None:
    """Write means over height and width as GlobalAveragePool: unlike ReduceMean, ONNX Runtime has it in 8 bits."""
    shapes = tensor_shapes(model)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "ReduceMean" and len(node.input) == 2]:
        axes = constants.get(node.input[1], np.array([])).tolist()
        keeps = all(attribute.i for attribute in node.attribute if attribute.name == "keepdims")
        if len(shapes.get(node.input[0], [])) != 4 or sorted(axis % 4 for axis in axes) != [2, 3]:
            continue
        pooled = node.output[0] if keeps else f"{node.output[0]}_pooled"
        position = list(model.graph.node).index(node)
        model.graph.node.remove(node)
        if not keeps:
            model.graph.node.insert(
                position, helper.make_node("Flatten", [pooled], [node.output[0]], f"{node.name}_flat")
            )
        pool = helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], f"{node.name}_pool")
        model.graph.node.insert(position, pool)


def split_last_layer(model: ModelProto) -> None:
    """Give each block's features a last layer of their own, and add up what they answer.

    Joined, all blocks would share one scale in 8 bits, and the small numbers of some would be rounded away. The last
    part, behind the features of the network's own last layer, keeps the bias.
    """
    gemm = model.graph.node[-1]
    joined = next(
        (node for node in model.graph.node if node.op_type == "Concat" and node.output[0] in gemm.input), None
    )
    if joined is None or not _transposes_weights(gemm):
        return
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    weight = numpy_helper.to_array(tensors[gemm.input[1]])
    bias = np.zeros(len(weight), weight.dtype)
    if len(gemm.input) > 2:  # a bias of zeros was optimized away
        bias = numpy_helper.to_array(tensors[gemm.input[2]])
    shapes, start, answers = tensor_shapes(model), 0, []
    for node in (joined, gemm):
        model.graph.node.remove(node)
    for number, source in enumerate(joined.input):
        end = start + shapes[source][1]
        names = [f"{gemm.output[0]}_{part}_{number}" for part in ("weight", "bias")]
        part_bias = bias if end == weight.shape[1] else np.zeros_like(bias)
        model.graph.initializer.append(numpy_helper.from_array(weight[:, start:end].copy(), names[0]))
        model.graph.initializer.append(numpy_helper.from_array(part_bias, names[1]))
        answers.append(f"{gemm.output[0]}_{number}")
        model.graph.node.append(
            helper.make_node("Gemm", [source, *names], answers[-1:], f"{gemm.name}_{number}", transB=1)
        )
        start = end
    model.graph.node.append(helper.make_node("Sum", answers, gemm.output, f"{gemm.name}_sum"))
    for name in gemm.input[1:]:
        model.graph.initializer.remove(tensors[name])


def flatten_channels_last(model: ModelProto) -> None:
    """Flatten feature maps as (N, H, W, C) before the last layer, whose weights are reordered to match.

    ONNX Runtime's fast 8-bit kernels work channels last. Flattened channels first, the pooling before runs in a kernel
    five times slower.
    """
    shapes = tensor_shapes(model)
    for flatten in [node for node in model.graph.node if node.op_type in ("Reshape", "Flatten")]:
        gemm = next((node for node in model.graph.node if flatten.output[0] in node.input[:1]), None)
        shape = shapes.get(flatten.input[0], [])
        if len(shape) != 4 or 0 in shape[1:] or shape[2:] == [1, 1] or gemm is None or not _transposes_weights(gemm):
            continue
        weights = next(tensor for tensor in model.graph.initializer if tensor.name == gemm.input[1])
        values = numpy_helper.to_array(weights)  # (classes, C·H·W)
        values = values.reshape(-1, *shape[1:]).transpose(0, 2, 3, 1).reshape(values.shape)
        weights.CopyFrom(numpy_helper.from_array(values, weights.name))
        turned = f"{flatten.input[0]}_channels_last"
        turn = helper.make_node("Transpose", [flatten.input[0]], [turned], f"{flatten.name}_turn", perm=[0, 2, 3, 1])
        model.graph.node.insert(list(model.graph.node).index(flatten), turn)
        flatten.input[0] = turned


def keep_pooling_in_place(model: ModelProto) -> None:
    """Put a Clip that clips nothing behind each max-pooling of the stem.

    If the stem stays float, ONNX Runtime moves the quantization that follows before the pooling, which then runs in a
    kernel ten times slower. The Clip prevents that and disappears into the quantization when the file is loaded.
    """
    for pooling in [node for node in stem(model) if node.op_type == "MaxPool"]:
        lowest = numpy_helper.from_array(np.array(np.finfo(np.float32).min), f"{pooling.name}_lowest")
        model.graph.initializer.append(lowest)
        position, name = list(model.graph.node).index(pooling), pooling.output[0]
        pooling.output[0] = f"{name}_pooled"
        clip = helper.make_node("Clip", [pooling.output[0], lowest.name], [name], f"{pooling.name}_clip")
        model.graph.node.insert(position + 1, clip)


def keep_float(path: Path, names: Sequence[str]) -> None:
    """Let layers that quantization left out stay in float when ONNX Runtime loads the file; changes the file.

    Where integers come in and go out again, it quantizes a layer's float weights itself: 8 bits for the whole tensor,
    whose sums may overflow on x86 (its WeightBiasQuantization, onnxruntime#25673). It lets a layer be whose bias is
    computed; so the bias becomes an integer of 32 bits and a scale.
    """
    model = onnx.load(path)
    constants = {tensor.name for tensor in model.graph.initializer}
    integers = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    for layer in [node for node in model.graph.node if node.name in names and node.op_type in LAYERS]:
        if layer.input[0] in integers and constants.issuperset(layer.input[1:]):
            _compute_bias(model, layer)
    onnx.save(model, path)


def _compute_bias(model: ModelProto, layer: NodeProto) -> None:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    outputs = constants[layer.input[1]].shape[0 if layer.op_type == "Conv" or _transposes_weights(layer) else 1]
    bias = constants[layer.input[2]] if len(layer.input) > 2 else np.zeros(outputs, np.float32)
    scale = np.float32(max(np.abs(bias).max(), 0.1) / 2**24)  # as fine as a float, with room for bias correction
    names = [f"{layer.name}_bias_{part}" for part in ("integer", "scale", "float")]
    values = np.rint(bias / np.float64(scale)).astype(np.int32), np.array(scale)
    model.graph.initializer.extend(map(numpy_helper.from_array, values, names))
    dequantize = helper.make_node("DequantizeLinear", names[:2], names[2:], f"{layer.name}_bias")
    model.graph.node.insert(list(model.graph.node).index(layer), dequantize)
    del layer.input[2:]
    layer.input.append(names[2])


def _transposes_weights(node: NodeProto) -> bool:
    """Tell whether a node is a Gemm with weights (classes, features), as torch exports it."""
    return node.op_type == "Gemm" and any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def tensor_shapes(model: ModelProto) -> dict[str, list[int]]:
    """Map tensors to their shapes, 0 where a dimension is free."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    return {value.name: [dimension.dim_value for dimension in value.type.tensor_type.shape.dim] for value in values}


def prepare(source: Path, target: Path) -> None:
    """Ready a graph for quantization: fuse what can be fused, as ONNX Runtime asks for, then the changes above."""
    with whole_file(target) as temporary:
        quant_pre_process(source, temporary, auto_merge=True)
        model = onnx.load(temporary)
        strip(model)
        pool_in_integers(model)
        split_last_layer(model)
        flatten_channels_last(model)
        keep_pooling_in_place(model)
        onnx.save(onnx.shape_inference.infer_shapes(model), temporary)


def count_operators(path: Path) -> Counter:
    """Count the graph's nodes by operator."""
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def overflow_share(path: Path) -> float:
    """Bound how many neighbouring pairs of 8-bit weights can overflow on an x86 CPU without VNNI.

    There two products of an activation (0 to 255) and a weight are summed in 16 bits, which saturate beyond 32,767
    (onnxruntime#5849, #14642), so two weights that sum to more than 128 in size may. Depthwise layers work otherwise.
    """
    pairs = []
    for tensor in onnx.load(path).graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if weights.dtype == np.int8 and weights.ndim > 1 and weights.shape[1] > 1:
            even = weights.shape[1] // 2 * 2
            pairs.append((weights[:, 0:even:2].astype(int) + weights[:, 1:even:2]).ravel())
    return float(np.mean(np.abs(np.concatenate(pairs)) > 128)) if pairs else 0.0
