#!/usr/bin/env bash
# onnx2tf 1.29.24, onnx 1.19.1, tensorflow 2.19.0, ai-edge-litert 2.1.0, Linux x86-64, Python 3.11.
#
# A quantized convolution (QuantizeLinear and DequantizeLinear around Conv), as quantizers write it where a Relu follows:
# they leave the Relu out, since an output of uint8 whose zero point is 0 has no values below 0. onnx2tf converts the file
# without a word into a float file in which both nodes are gone, and what they cut off with them: outputs of the reference,
# which lie above 0, come out from -1.7 on. With a zero point of 128, where nothing is cut off, the
# converted file is right within two steps. Expected: an error, or the same outputs within two steps of 0.02.
#
# Beside that: to convert a network of three channels, onnx2tf downloads an array of photos, unless a file of its name lies
# in the working folder; here it does, so that only pip needs a network.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx2tf==1.29.24 onnx==1.19.1 tensorflow==2.19.0 \
    tf_keras==2.19.0 ai-edge-litert==2.1.0
cat > "$folder/look.py" <<'PYTHON'
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from ai_edge_litert.interpreter import Interpreter
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

STEP = np.float32(0.02)  # of the output
generator = np.random.default_rng(0)


def quantized_convolution(zero_point):
    constants = {
        "x_scale": np.float32(1 / 255), "x_zero": np.uint8(0),
        "w": generator.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8),
        "w_scale": np.full(4, 0.004, np.float32), "w_zero": np.zeros(4, np.int8),
        "y_scale": STEP, "y_zero": np.uint8(zero_point),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wf"], axis=0),
        helper.make_node("Conv", ["xf", "wf"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "y_scale", "y_zero"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "y_scale", "y_zero"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 6, 6]),
    ]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


np.save("calibration_image_sample_data_20x128x128x3_float32.npy", generator.random((20, 128, 128, 3), np.float32))
x = generator.random((1, 3, 8, 8), np.float32)
for zero_point in (0, 128):
    model = quantized_convolution(zero_point)
    onnx.save(model, "net.onnx")
    command = [Path(sys.prefix) / "bin" / "onnx2tf", "-i", "net.onnx", "-o", f"converted{zero_point}", "-n"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    interpreter = Interpreter(f"converted{zero_point}/net_float32.tflite")
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x.transpose(0, 2, 3, 1))
    interpreter.invoke()
    found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).transpose(0, 3, 1, 2)
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    same = bool(np.abs(found - expected).max() <= 2 * STEP)
    print(zero_point, "the same" if same else f"expected from {expected.min():.1f}, found from {found.min():.1f}")
PYTHON
seen=$(cd "$folder" && TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" look.py 2>/dev/null)
expected="0 expected from 0.0, found from -1.7
128 the same"
if [ "$seen" != "$expected" ]; then
    printf 'changed:\nseen:\n%s\nexpected:\n%s\n' "$seen" "$expected"
    exit 1
fi
echo "as described"
