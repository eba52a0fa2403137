"""Files that are no model of ours are named with their cause; external data stays inside the folder."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from utils import session
from utils.config import InputError
from utils.onnx_quant.export import write_metadata
from utils.session import open_session, open_to_predict


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9", "Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (None, "truncated"),
    ],
)
def test_damaged_file_is_named_with_its_cause(net, tmp_path, content, cause):
    path = tmp_path / "net.onnx"
    path.write_bytes(net.read_bytes()[:500] if content is None else content)
    with pytest.raises(InputError, match=rf"net\.onnx cannot be read: .*{cause}"):
        open_session(path)


def test_absent_file_is_named_with_the_next_step(tmp_path):
    with pytest.raises(InputError, match=r"net\.onnx does not exist: run onnx_quant\.ipynb"):
        open_session(tmp_path / "net.onnx")


def test_newer_format_is_named(net, tmp_path):
    model = onnx.load(net)
    model.ir_version = 99
    (tmp_path / "new.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"new\.onnx cannot be read.*the file is whole.*(?i:ir.?version)") as error:
        open_session(tmp_path / "new.onnx")
    assert "truncated" not in str(error.value)


def save_external(folder, location):
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "weight")
    onnx.external_data_helper.set_external_data(weight, location)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("input", "output")]
    node = helper.make_node("MatMul", ["input", "weight"], ["output"])
    graph = helper.make_graph([node], "net", values[:1], values[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    return folder / "net.onnx"


def test_missing_external_data_is_named(tmp_path):
    with pytest.raises(InputError, match=r"net\.onnx cannot be read.*weights\.data"):
        open_session(save_external(tmp_path, "weights.data"))


@pytest.mark.parametrize(("bits", "without_vnni", "precise"), [(8, True, "1"), (8, False, None), (7, True, None)])
def test_sums_are_exact_where_they_might_overflow_and_only_there(
    net, tmp_path, monkeypatch, bits, without_vnni, precise
):
    path = tmp_path / "net.onnx"
    path.write_bytes(net.read_bytes())
    write_metadata(path, weight_bits=bits)
    monkeypatch.setattr(session, "CPU", {"SSSE3": True, "AVX512VNNI": not without_vnni})
    options = open_to_predict(path).get_session_options()
    if precise:
        assert options.get_session_config_entry("session.x64quantprecision") == precise
    else:
        with pytest.raises(RuntimeError):
            options.get_session_config_entry("session.x64quantprecision")


@pytest.mark.parametrize("how", ["../secret.data", "absolute", "link"])
def test_external_data_outside_the_folder_stays_refused(tmp_path, how):
    (tmp_path / "secret.data").write_bytes(np.eye(4, dtype=np.float32).tobytes())
    folder = tmp_path / "model"
    folder.mkdir()
    location = {"absolute": str(tmp_path / "secret.data"), "link": "link.data"}.get(how, how)
    if how == "link":
        (folder / "link.data").symlink_to(tmp_path / "secret.data")
    with pytest.raises(InputError, match=r"net\.onnx cannot be read"):
        open_session(save_external(folder, location))
