"""Bias correction finds what was planted, and does no harm where an activation cuts off."""

import numpy as np
import onnx
import pytest
from nets import residual_net, save_net, to_int8
from onnx import helper, numpy_helper

from utils.metrics import sqnr_db
from utils.onnx_quant.bias_correction import correct_biases
from utils.session import run_model

IMAGES = np.random.default_rng(1).normal(size=(40, 3, 16, 16)).astype(np.float32)
SEEN, UNSEEN = IMAGES[:20], IMAGES[20:]
LAYERS = ["conv1", "conv2", "conv3", "gemm"]


@pytest.fixture
def pair(tmp_path):
    source = residual_net(tmp_path / "net.onnx")
    return source, to_int8(source, tmp_path / "int8.onnx", SEEN)


def plant(path, shifts: dict[str, float]) -> None:
    """Add a shift, in units of the output, to the biases of layers."""
    model = onnx.load(path)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {node.output[0]: node for node in model.graph.node}
    for node in model.graph.node:
        if node.name in shifts:
            name, scale = makers[node.input[2]].input[:2]
            bias = numpy_helper.to_array(constants[name])
            steps = np.rint(shifts[node.name] / numpy_helper.to_array(constants[scale]))
            constants[name].CopyFrom(numpy_helper.from_array((bias + steps).astype(np.int32), name))
    onnx.save(model, path)


def add_to_float_bias(path, shift: float) -> None:
    """Add to conv2's bias where it is a float."""
    model = onnx.load(path)
    (bias,) = [tensor for tensor in model.graph.initializer if tensor.name == "b2"]
    values = numpy_helper.to_array(bias) + np.float32(shift)
    bias.CopyFrom(numpy_helper.from_array(values, "b2"))
    onnx.save(model, path)


def quality(source, target) -> float:
    return sqnr_db(run_model(source, UNSEEN), run_model(target, UNSEEN))


@pytest.mark.parametrize("layers", [["conv1"], ["conv2", "gemm"], LAYERS])
def test_planted_bias_is_taken_off(pair, layers):
    source, target = pair
    before = quality(source, target)
    plant(target, dict.fromkeys(layers, 0.4))
    assert quality(source, target) < before - 10
    shifts = correct_biases(source, target, SEEN)
    assert quality(source, target) > before - 1
    assert list(shifts) == LAYERS
    for name in LAYERS:
        # what is planted in one layer is mended there, and not again in those behind it
        assert shifts[name] == pytest.approx(0.4 if name in layers else 0, abs=0.08)


def test_correcting_again_changes_next_to_nothing(pair):
    plant(pair[1], {"conv1": 0.4, "conv3": -0.3})
    correct_biases(*pair, SEEN)
    assert max(correct_biases(*pair, SEEN).values()) < 0.01


def test_float_graph_and_everything_but_biases_stay_as_they_were(pair):
    source, target = pair
    untouched = source.read_bytes()
    before = {tensor.name: tensor.SerializeToString() for tensor in onnx.load(target).graph.initializer}
    plant(target, {"conv1": 0.4})
    correct_biases(source, target, SEEN)
    after = {tensor.name: tensor.SerializeToString() for tensor in onnx.load(target).graph.initializer}
    assert source.read_bytes() == untouched
    assert {name for name in before if before[name] != after[name]} <= {f"b{i}_quantized" for i in range(1, 5)}
    assert before.keys() == after.keys()


def test_float_bias_is_corrected_too(tmp_path):
    source = residual_net(tmp_path / "net.onnx")
    target = to_int8(source, tmp_path / "int8.onnx", SEEN, nodes_to_exclude=("conv2",))
    before = quality(source, target)
    add_to_float_bias(target, shift=0.4)
    assert quality(source, target) < before - 10
    assert correct_biases(source, target, SEEN)["conv2"] == pytest.approx(0.4, abs=0.08)
    assert quality(source, target) > before - 1


def test_layer_without_bias_is_left_alone(tmp_path):
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["a"], "conv1"),
        helper.make_node("GlobalAveragePool", ["a"], ["b"], "pool"),
        helper.make_node("Flatten", ["b"], ["c"], "flatten"),
        helper.make_node("Gemm", ["c", "w2", "b2"], ["output"], "gemm", transB=1),
    ]
    generator = np.random.default_rng(0)
    shapes = {"w1": (5, 3, 1, 1), "w2": (3, 5), "b2": (3,)}
    constants = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    source = save_net(tmp_path / "net.onnx", nodes, constants, size=16)
    target = to_int8(source, tmp_path / "int8.onnx", SEEN)
    assert list(correct_biases(source, target, SEEN)) == ["gemm"]


def test_what_an_activation_cuts_off_does_not_count(tmp_path):
    """Inputs below -0.5 are clipped by INT8, which moves only outputs that Relu cuts off anyway."""
    weight, bias = np.eye(3, dtype=np.float32)[:, :, None, None], np.zeros(3, np.float32)
    nodes = [
        helper.make_node("Conv", ["input", "w", "b"], ["a"], "conv1"),
        helper.make_node("Relu", ["a"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["output"], "flatten"),
    ]
    source = save_net(tmp_path / "net.onnx", nodes, {"w": weight, "b": bias}, size=16)
    images = np.where(IMAGES > 0, 1, -1).astype(np.float32)
    target = to_int8(source, tmp_path / "int8.onnx", np.maximum(images, -0.5))
    correct_biases(source, target, images)
    np.testing.assert_allclose(run_model(target, images), run_model(source, images), atol=0.01)
