#!/usr/bin/env bash
# onnxruntime 1.32.0, onnx 1.23.2, Linux x86-64, Python 3.11.
#
# quantize_static(per_channel=True) on a convolution with a channel whose weights are all zero (as pruning leaves, and
# networks that were trained with weight decay): the channel gets a weight scale of 1, and the scale of its bias is that
# times the input's. Here the input ranges to 100, so that a bias of 0.25 is rounded to the nearest multiple of 0.78, to 0:
# the channel answers 0 instead of 0.25. Its neighbor, whose weights are not zero, keeps its bias of 0.25 to 0.004. With
# per_channel=False both keep it. Nothing warns. The script prints what each channel answers to an input of zeros.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export ORT_DISABLE_TELEMETRY=1
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cat > "$folder/look.py" <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

weight = np.array([0, 0.001], np.float32).reshape(2, 1, 1, 1)
constants = {"weight": weight, "bias": np.full(2, 0.25, np.float32)}
ends = [
    helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4]),
    helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 4, 4]),
]
tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
graph = helper.make_graph([helper.make_node("Conv", ["x", "weight", "bias"], ["y"])], "net", ends[:1], ends[1:], tensors)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.checker.check_model(model, full_check=True)
source, target = f"{sys.argv[1]}/net.onnx", f"{sys.argv[1]}/int8.onnx"
onnx.save(model, source)


class Reader(CalibrationDataReader):
    def __init__(self):
        self.batches = iter([{"x": np.linspace(-100, 100, 16, dtype=np.float32).reshape(1, 1, 4, 4)}])

    def get_next(self):
        return next(self.batches, None)


for per_channel in (True, False):
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(source, target, Reader(), per_channel=per_channel, **types)
    session = ort.InferenceSession(target, providers=["CPUExecutionProvider"])
    answer = session.run(None, {"x": np.zeros((1, 1, 4, 4), np.float32)})[0][0, :, 0, 0]
    print("per channel" if per_channel else "per tensor", (np.abs(answer - 0.25) < 0.01).tolist(), round(float(answer[0]), 2))
PYTHON
seen=$("$folder/venv/bin/python" "$folder/look.py" "$folder" 2>/dev/null)
expected="per channel [False, True] 0.0
per tensor [True, True] 0.25"
if [ "$seen" != "$expected" ]; then
    printf 'changed:\nseen:\n%s\nexpected:\n%s\n' "$seen" "$expected"
    exit 1
fi
echo "as described"
