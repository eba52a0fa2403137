"""INT8 recipes: what suits a CPU, and what is tried after it."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from nets import save_net, to_int8
from onnx import helper
from onnxruntime.quantization import QuantType

from utils.config import TARGETS
from utils.metrics import sqnr_db
from utils.onnx_quant.graph import prepare, stem
from utils.onnx_quant.recipes import LIBRARY_DEFAULT, candidate_recipes, type_recipes
from utils.session import run_model

CPUS = [
    ({"architecture": "x86_64", "vnni": True}, "U8S8 per-channel"),
    ({"architecture": "AMD64", "vnni": False}, "U8S8 per-channel reduce-range"),
    ({"architecture": "arm64", "vnni": False}, "S8S8 per-channel"),
]


@pytest.mark.parametrize(("cpu", "first"), CPUS)
def test_first_recipe_suits_the_cpu_and_the_librarys_default_is_among_them(net, cpu, first):
    recipes = candidate_recipes("here", cpu, net)
    assert type_recipes("here", cpu)[0].name == recipes[0].name == first
    assert LIBRARY_DEFAULT in recipes
    assert LIBRARY_DEFAULT.activation_type == QuantType.QInt8
    assert not LIBRARY_DEFAULT.per_channel and not LIBRARY_DEFAULT.correct_biases
    assert ("conv1", "clip1") in [recipe.nodes_to_exclude for recipe in recipes]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("cpu", "first"), CPUS)
def test_no_two_recipes_share_a_name(net, cpu, first, target):
    names = [recipe.name for recipe in candidate_recipes(target, cpu, net)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("cpu", "first"), CPUS)
def test_a_target_has_its_number_types_whatever_cpu_is_at_hand(net, cpu, first):
    for target, name, bits in (
        ("any", "U8S8 per-channel reduce-range", 7),
        ("openvino", "U8S8 per-channel reduce-range", 7),
        ("web", "U8S8 per-channel reduce-range", 7),
        ("arm64", "S8S8 per-channel", 8),
        ("tensorrt", "S8S8 symmetric per-channel", 8),
    ):
        recipes = candidate_recipes(target, cpu, net)
        assert recipes[0].name == name and recipes[0].weight_bits == bits
        chosen_from = [recipe for recipe in recipes if not recipe.reference]
        assert {recipe.activation_type for recipe in chosen_from} == {recipes[0].activation_type}
        assert {recipe.weight_bits for recipe in chosen_from} == {bits}
    assert LIBRARY_DEFAULT.reference


def quantized_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Read a file's constants that stand before a DequantizeLinear, and the zero points of its activations."""
    graph = onnx.load(path).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    stored = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants]
    activations = [node.input[2] for node in graph.node if node.op_type == "QuantizeLinear"]
    return {node.input[0]: constants[node.input[0]] for node in stored}, {name: constants[name] for name in activations}


@pytest.mark.parametrize("target", [target for target in TARGETS if target != "here"])
@pytest.mark.parametrize("source", ["net", "prepared_conv_net"])
def test_file_of_a_target_has_the_integers_that_the_target_reads(request, tmp_path, source, target):
    source = request.getfixturevalue(source)
    side = onnx.load(source).graph.input[0].type.tensor_type.shape.dim[2].dim_value
    images = np.random.default_rng(0).uniform(-1, 1, (16, 3, side, side)).astype(np.float32)
    (recipe,) = type_recipes(target, CPUS[0][0])
    path = to_int8(source, tmp_path / "int8.onnx", images, **recipe._asdict())
    stored, zero_points = quantized_tensors(path)
    weights = [values for values in stored.values() if values.dtype == np.int8]
    biases = [values for values in stored.values() if values.dtype == np.int32]
    largest = max(np.abs(values.astype(int)).max() for values in weights)
    assert {values.dtype.name for values in zero_points.values()} == {{"U": "uint8", "S": "int8"}[recipe.name[0]]}
    assert largest == {7: 64, 8: 127}[recipe.weight_bits]
    assert len(biases) == (0 if target == "tensorrt" else len(weights))
    if target == "tensorrt":
        assert len(stored) == len(weights) and not any(zero.any() for zero in zero_points.values())
    logits = [run_model(file, images, precise=True) for file in (source, path)]
    assert sqnr_db(*logits) > 20


def token_net(path: Path) -> Path:
    """Conv → tokens → LayerNormalization → MatMul, gated by a Sigmoid → mean → Gemm: what a transformer is made of."""
    generator = np.random.default_rng(0)

    def values(*shape: int) -> np.ndarray:
        return generator.normal(size=shape).astype(np.float32)

    constants = {"w1": values(8, 3, 4, 4), "b1": values(8), "tokens": np.array([0, 8, 16]), "scale": 1 + values(8) / 9}
    constants |= {"shift": values(8), "w2": values(8, 8), "w3": values(8, 8), "w4": values(3, 8), "b4": values(3)}
    constants["axis"] = np.array([1])
    nodes = [
        helper.make_node("Conv", ["input", "w1", "b1"], ["a"], "conv", strides=[4, 4]),
        helper.make_node("Reshape", ["a", "tokens"], ["b"], "reshape"),
        helper.make_node("Transpose", ["b"], ["c"], "transpose", perm=[0, 2, 1]),
        helper.make_node("LayerNormalization", ["c", "scale", "shift"], ["d"], "norm"),
        helper.make_node("MatMul", ["d", "w2"], ["e"], "matmul"),
        helper.make_node("MatMul", ["d", "w3"], ["f"], "gate"),
        helper.make_node("Sigmoid", ["f"], ["g"], "sigmoid"),
        helper.make_node("Mul", ["e", "g"], ["h"], "mul"),
        helper.make_node("ReduceMean", ["h", "axis"], ["i"], "mean", keepdims=0),
        helper.make_node("Gemm", ["i", "w4", "b4"], ["output"], "gemm", transB=1),
    ]
    return save_net(path, nodes, constants, size=16)


def test_of_a_transformer_the_layers_alone_become_integers(tmp_path):
    prepared = tmp_path / "prepared.onnx"
    prepare(token_net(tmp_path / "net.onnx"), prepared)
    assert [node.name for node in stem(ir.load(prepared))][0] == "conv"
    assert "matmul" not in [node.name for node in stem(ir.load(prepared))]
    images = np.random.default_rng(1).normal(size=(16, 3, 16, 16)).astype(np.float32)
    (recipe,) = [recipe for recipe in candidate_recipes("here", CPUS[0][0], prepared) if recipe.note == "layers only"]
    path = to_int8(prepared, tmp_path / "int8.onnx", images, operators=recipe.operators)
    made = {name: node.op_type for node in onnx.load(path).graph.node for name in node.output}
    reads = {node.name: [made.get(name) for name in node.input] for node in onnx.load(path).graph.node}
    for name in ("conv", "matmul", "gate", "gemm"):
        assert reads[name][:2] == ["DequantizeLinear"] * 2, name
    assert reads["norm"][1:] == [None, None] and reads["mul"] == ["DequantizeLinear", "Sigmoid"]
    assert run_model(path, images, precise=True).shape == (16, 3), "ONNX Runtime can check these sums"


def test_networks_that_do_not_multiply_have_no_recipe_for_layers_only(net, prepared_conv_net):
    assert "layers only" not in [recipe.note for recipe in candidate_recipes("here", CPUS[0][0], net)]
    assert "layers only" in [recipe.note for recipe in candidate_recipes("here", CPUS[0][0], prepared_conv_net)]
