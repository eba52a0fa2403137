#!/usr/bin/env bash
# onnx 1.23.2, Linux x86-64, Python 3.11.
#
# onnx.version_converter.convert_version(model, 17) of a ReduceMean of opset 18 with noop_with_empty_axes=0, its default, as
# torch.onnx writes it: the axes become an attribute, as opset 17 wants it, but noop_with_empty_axes, which opset 17 does not
# know, stays. No error is raised; onnx.checker then refuses what was returned: "Unrecognized attribute:
# noop_with_empty_axes for operator ReduceMean". The same model without that attribute is converted into a valid one. The
# script prints, for both, whether the checker takes the model before and after.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 numpy==2.4.6
cat > "$folder/look.py" <<'PYTHON'
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter


def valid(model):
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        return f"invalid, {'noop_with_empty_axes' in str(error)}"
    return "valid"


for attributes in ({"noop_with_empty_axes": 0}, {}):
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0, **attributes)
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3]),
    ]
    graph = helper.make_graph([node], "net", ends[:1], ends[1:], [numpy_helper.from_array(np.array([2, 3]), "axes")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    print(sorted(attributes), valid(model), valid(version_converter.convert_version(model, 17)), sep="; ")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/look.py")
expected="['noop_with_empty_axes']; valid; invalid, True
[]; valid; valid"
if [ "$seen" != "$expected" ]; then
    printf 'changed:\nseen:\n%s\nexpected:\n%s\n' "$seen" "$expected"
    exit 1
fi
echo "as described"
