"""Graphs: readied for quantization, kept as they should be by ONNX Runtime, checked for overflow."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from nets import KEEP_FLOAT, spoil, to_int8
from onnx import helper, numpy_helper

from utils.metrics import sqnr_db
from utils.onnx_quant.graph import keep_float, overflow_share, prepare, stem
from utils.session import run_model

IMAGES = np.random.default_rng(0).normal(size=(22, 3, 16, 16)).astype(np.float32)
LARGE_IMAGES = np.random.default_rng(0).normal(size=(8, 3, 64, 64)).astype(np.float32)


def optimized(path, tmp_path) -> onnx.ModelProto:
    """What ONNX Runtime makes of a file when it loads it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return onnx.load(tmp_path / "optimized.onnx")


# --- overflow


@pytest.mark.parametrize(("weight", "share"), [(64, 0.0), (65, 1.0), (127, 1.0)])
def test_overflow_is_foreseen(tmp_path, weight, share):
    """Two products of 255 and 65 exceed 16 bits, of 255 and 64 they do not."""
    for sign, expected in ((1, share), (-1, share), (None, 0.0)):
        weights = np.full((4, 6, 3, 3), weight, np.int8) * np.int8(sign or 1)
        if sign is None:
            weights[:, 1::2] *= -1  # opposite signs cancel
        tensors = [numpy_helper.from_array(weights, "w")]
        onnx.save(helper.make_model(helper.make_graph([], "net", [], [], tensors)), tmp_path / "net.onnx")
        assert overflow_share(tmp_path / "net.onnx") == expected


def test_seven_bit_weights_cannot_overflow(net, tmp_path):
    to_int8(net, tmp_path / "8.onnx", IMAGES, reduce_range=False)
    to_int8(net, tmp_path / "7.onnx", IMAGES, reduce_range=True)
    assert overflow_share(tmp_path / "8.onnx") > 0 == overflow_share(tmp_path / "7.onnx")


# --- preparation


def test_preparation_keeps_the_answers_and_works_channels_last(conv_net_file, prepared_conv_net):
    logits, expected = run_model(prepared_conv_net, LARGE_IMAGES), run_model(conv_net_file, LARGE_IMAGES)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    model = onnx.load(prepared_conv_net)
    producers = {name: node.op_type for node in model.graph.node for name in node.output}
    names = [node.op_type for node in model.graph.node]
    assert names[-5:] == ["Gemm"] * 4 + ["Sum"], "one last layer per block"
    assert "Concat" not in names and "ReduceMean" not in names and names.count("GlobalAveragePool") == 2
    assert [producers[node.input[0]] for node in model.graph.node if node.op_type == "Reshape"] == ["Transpose"] * 2
    assert [node.op_type for node in stem(ir.load(prepared_conv_net))] == ["Conv", "Sigmoid", "Mul", "MaxPool", "Clip"]


def test_float_stem_is_pooled_before_it_is_quantized(prepared_conv_net, tmp_path):
    """ONNX Runtime would swap the two, which costs more than INT8 gains."""
    excluded = tuple(node.name for node in stem(ir.load(prepared_conv_net)))
    to_int8(prepared_conv_net, tmp_path / "int8.onnx", LARGE_IMAGES, nodes_to_exclude=excluded)
    order = [node.op_type for node in optimized(tmp_path / "int8.onnx", tmp_path).graph.node]
    assert order.index("MaxPool") < order.index("QuantizeLinear")
    assert "Clip" not in order


def test_many_at_once_do_not_disturb_each_other(conv_net_file, tmp_path):
    before = sorted(conv_net_file.parent.iterdir())

    def quantize_one(number) -> bytes:
        folder = tmp_path / str(number)
        folder.mkdir()
        prepare(conv_net_file, folder / "prepared.onnx")
        return to_int8(folder / "prepared.onnx", folder / "int8.onnx", LARGE_IMAGES, correct_biases=True).read_bytes()

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(quantize_one, range(4)))) == 1
    assert sorted(conv_net_file.parent.iterdir()) == before


# --- layers left in float


@pytest.fixture(scope="module")
def coarse(net, tmp_path_factory):
    """A net with one huge weight in conv3: a single scale for all channels leaves the other weights a step or two."""
    return spoil(net, tmp_path_factory.mktemp("coarse") / "net.onnx")


def without_bias(source, target, layer):
    model = onnx.load(source)
    (node,) = [node for node in model.graph.node if node.name == layer]
    del node.input[2:]
    onnx.save(model, target)
    return target


def quality(net, path) -> float:
    return sqnr_db(run_model(net, IMAGES), run_model(path, IMAGES))


def test_onnxruntime_still_quantizes_layers_that_were_left_out(coarse, tmp_path):
    """When this fails, onnxruntime#25673 respects `nodes_to_exclude`, and `keep_float` may go."""
    left_out = to_int8(coarse, tmp_path / "int8.onnx", IMAGES, edits={KEEP_FLOAT: ""}, nodes_to_exclude=("conv3",))
    operators = Counter(node.op_type for node in optimized(left_out, tmp_path).graph.node)
    assert (operators["QLinearConv"], operators["Conv"]) == (3, 0)


@pytest.mark.parametrize("bias", [True, False])
def test_layer_that_was_left_out_stays_in_float(coarse, tmp_path, bias):
    source = coarse if bias else without_bias(coarse, tmp_path / "source.onnx", "conv3")
    path = to_int8(source, tmp_path / "int8.onnx", IMAGES, edits={KEEP_FLOAT: ""}, nodes_to_exclude=("conv3",))
    before = quality(source, path)
    keep_float(path, ["conv3"])
    operators = Counter(node.op_type for node in optimized(path, tmp_path).graph.node)
    assert (operators["QLinearConv"], operators["Conv"]) == (2, 1)
    assert quality(source, path) > before + 1
    assert path.read_bytes() == to_int8(source, tmp_path / "2.onnx", IMAGES, nodes_to_exclude=("conv3",)).read_bytes()
