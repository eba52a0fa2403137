#!/usr/bin/env bash
# onnxruntime 1.32.0, onnx 1.23.2, Linux x86-64, Python 3.11.
#
# quantize_static("net.onnx", "int8.onnx", …) writes net-inferred.onnx beside its input and deletes it afterwards. If a file
# of that name is there already, such as one that shape inference wrote earlier, it is overwritten and deleted, without a
# word. The file has nothing to do with the call: neither argument names it. The script puts a text file there, quantizes
# a network of one node in a folder of its own, and lists the folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export ORT_DISABLE_TELEMETRY=1
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
mkdir "$folder/models"
cat > "$folder/look.py" <<'PYTHON'
import os
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, quantize_static

os.chdir(sys.argv[1])
ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "weight")
graph = helper.make_graph([helper.make_node("MatMul", ["x", "weight"], ["y"])], "net", ends[:1], ends[1:], [weight])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.checker.check_model(model, full_check=True)
onnx.save(model, "net.onnx")


class Reader(CalibrationDataReader):
    def __init__(self):
        self.batches = iter([{"x": np.array([[-1, 0, 1, 2]], np.float32)}])

    def get_next(self):
        return next(self.batches, None)


for name in ("net-inferred.onnx", "other-inferred.onnx"):
    Path(name).write_text("of the user", encoding="utf-8")
quantize_static("net.onnx", "int8.onnx", Reader())
print(*sorted(os.listdir()))
PYTHON
seen=$("$folder/venv/bin/python" "$folder/look.py" "$folder/models" 2>/dev/null)
expected="int8.onnx net.onnx other-inferred.onnx"
if [ "$seen" != "$expected" ]; then
    printf 'changed:\nseen:\n%s\nexpected:\n%s\n' "$seen" "$expected"
    exit 1
fi
echo "as described"
