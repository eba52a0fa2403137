#!/usr/bin/env bash
# onnx-graphsurgeon 0.6.1, onnx 1.23.2, Linux x86-64, Python 3.11.
#
# gs.export_onnx(gs.import_onnx(model)), without any change between, writes a model whose metadata_props are gone, without a
# word: with them go, in files of classifiers, the names of the classes and how a photo is prepared. Nodes and answers are
# the same. onnxsim 0.8.1, onnxslim 0.1.98 and onnx.version_converter keep them. The script makes a model of one node with
# two entries of metadata, and counts what is left.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx-graphsurgeon==0.6.1 onnxsim==0.8.1 onnxslim==0.1.98 \
    onnx==1.23.2 numpy==2.4.6
cat > "$folder/look.py" <<'PYTHON'
import onnx
import onnx.version_converter
import onnx_graphsurgeon as gs
import onnxsim
import onnxslim
from onnx import TensorProto, helper

ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Softmax", ["x"], ["y"])], "net", ends[:1], ends[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
helper.set_model_props(model, {"classes": "apple, cherry", "size": "64"})
onnx.checker.check_model(model, full_check=True)
written = {
    "onnx-graphsurgeon": gs.export_onnx(gs.import_onnx(model)),
    "onnxsim": onnxsim.simplify(model)[0],
    "onnxslim": onnxslim.slim(model),
    "onnx.version_converter": onnx.version_converter.convert_version(model, 18),
}
for name, other in written.items():
    print(name, [node.op_type for node in other.graph.node], sorted(entry.key for entry in other.metadata_props if "." not in entry.key))
PYTHON
seen=$("$folder/venv/bin/python" "$folder/look.py")
expected="onnx-graphsurgeon ['Softmax'] []
onnxsim ['Softmax'] ['classes', 'size']
onnxslim ['Softmax'] ['classes', 'size']
onnx.version_converter ['Softmax'] ['classes', 'size']"
if [ "$seen" != "$expected" ]; then
    printf 'changed:\nseen:\n%s\nexpected:\n%s\n' "$seen" "$expected"
    exit 1
fi
echo "as described"
