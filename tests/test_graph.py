"""Graphs: readied for quantization, kept as they should be by ONNX Runtime, checked for overflow."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from nets import to_int8
from onnx import numpy_helper

from utils.onnx_quant.graph import prepare, stem
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


def test_seven_bit_weights_cannot_overflow(net, tmp_path):
    """Without VNNI, x86 sums two products of an activation (to 255) and a weight in 16 bits: 2 · 255 · 64 < 32,768."""
    for reduce_range, largest in ((False, 127), (True, 64)):
        path = to_int8(net, tmp_path / "int8.onnx", IMAGES, reduce_range=reduce_range)
        tensors = [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
        assert max(np.abs(values.astype(int)).max() for values in tensors if values.dtype == np.int8) == largest


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
