#!/usr/bin/env bash
# onnxruntime 1.32.0, onnx 1.23.2, Linux x86-64, Python 3.11.
#
# A Transpose of a photo to channels first, and a Resize of its last two axes (`axes=[2, 3]`, a `sizes` of two numbers), as
# opset 18 has it: the file passes onnx.checker with full_check, and runs with ORT_ENABLE_BASIC and with ORT_DISABLE_ALL. With
# ORT_ENABLE_ALL, the default, InferenceSession raises "[ShapeInferenceError] Number of elements of input 'sizes' (0) does
# not match the number of axes (2)": the optimizer moves the Transpose behind the Resize, and rewrites `sizes` as if there
# were no axes. Channels last all along, without a Transpose before it, the same Resize loads and runs at every level.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export ORT_DISABLE_TELEMETRY=1
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cat > "$folder/look.py" <<'PYTHON'
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper


def network(turned):
    resize = {"mode": "linear", "antialias": 1, "axes": [2, 3] if turned else [1, 2]}
    nodes = [helper.make_node("Resize", ["t" if turned else "x", "", "", "size"], ["y"], **resize)]
    if turned:
        nodes.insert(0, helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]))
    ends = [
        helper.make_tensor_value_info("x", TensorProto.UINT8, [1, "height", "width", 3]),
        helper.make_tensor_value_info("y", TensorProto.UINT8, [1, 3, 8, 8] if turned else [1, 8, 8, 3]),
    ]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], [numpy_helper.from_array(np.array([8, 8]), "size")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


photo = np.random.default_rng(0).integers(0, 256, (1, 20, 30, 3), dtype=np.uint8)
for turned in (True, False):
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"):
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        options.log_severity_level = 4
        try:
            session = ort.InferenceSession(network(turned), options, providers=["CPUExecutionProvider"])
            found = session.run(None, {"x": photo})[0].shape
        except Exception as error:
            found = "Number of elements of input 'sizes' (0)" in str(error) and "sizes refused"
        print("Transpose, Resize" if turned else "Resize", level, found)
PYTHON
seen=$("$folder/venv/bin/python" "$folder/look.py")
expected="Transpose, Resize ORT_DISABLE_ALL (1, 3, 8, 8)
Transpose, Resize ORT_ENABLE_BASIC (1, 3, 8, 8)
Transpose, Resize ORT_ENABLE_ALL sizes refused
Resize ORT_DISABLE_ALL (1, 8, 8, 3)
Resize ORT_ENABLE_BASIC (1, 8, 8, 3)
Resize ORT_ENABLE_ALL (1, 8, 8, 3)"
if [ "$seen" != "$expected" ]; then
    printf 'changed:\nseen:\n%s\nexpected:\n%s\n' "$seen" "$expected"
    exit 1
fi
echo "as described"
