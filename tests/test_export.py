"""Export: O1, O2, O4, O10, and what travels in the file."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from utils.config import InputError
from utils.model import ConvNet
from utils.onnx_quant.deploy import deployed_answers, write_deployable
from utils.onnx_quant.onnx_file import check_parity, write_metadata
from utils.session import open_session, read_metadata

IMAGES = np.random.default_rng(0).normal(size=(9, 3, 64, 64)).astype(np.float32)
PREPROCESSING = {"image_size": 64, "interpolation": "bilinear", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


def export(model, path, dynamic=True):
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    trial = (torch.randn(2, 3, 64, 64),)
    names = {"input_names": ["input"], "output_names": ["output"]}
    torch.onnx.export(model, trial, path, dynamic_shapes=shapes, external_data=False, verbose=False, **names)
    return path


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ConvNet(3).eval()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    path = export(model, tmp_path_factory.mktemp("모델 파일") / "net.onnx")
    write_metadata(path, classes=["사과", "cherry"], preprocessing=PREPROCESSING)
    return path


def test_logits_are_pytorchs_at_any_batch_size(model, exported):
    parity = check_parity(model, exported, IMAGES, batch_sizes=(1, 2, 7))
    assert list(parity.index) == [1, 2, 7]
    assert parity["max_abs_diff"].max() <= 1e-4
    assert (parity["same_answer"] == 1).all()


def test_parity_notices_another_model(exported):
    torch.manual_seed(1)
    assert check_parity(ConvNet(3).eval(), exported, IMAGES, batch_sizes=(4,))["max_abs_diff"].max() > 1e-3


def test_frozen_batch_is_refused(model, tmp_path):
    frozen = export(model, tmp_path / "frozen.onnx", dynamic=False)
    with pytest.raises(InputError, match=r"frozen\.onnx: the batch axis of 'input' is frozen at 2.*dynamic_shapes"):
        check_parity(model, frozen, IMAGES, batch_sizes=(2,))


def test_file_explains_itself_and_names_no_path_of_this_machine(exported):
    content = exported.read_bytes()
    assert read_metadata(open_session(exported))["classes"] == ["사과", "cherry"]
    assert json.loads(open_session(exported).get_modelmeta().custom_metadata_map["preprocessing"]) == PREPROCESSING
    assert b"site-packages" not in content and b".py" not in content
    onnx.checker.check_model(onnx.load(exported), full_check=True)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9", "Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (None, "truncated"),
    ],
)
def test_damaged_file_is_named_with_its_cause(exported, tmp_path, content, cause):
    path = tmp_path / "net.onnx"
    path.write_bytes(exported.read_bytes()[:5000] if content is None else content)
    with pytest.raises(InputError, match=rf"net\.onnx cannot be read: .*{cause}"):
        open_session(path)


def test_newer_format_is_named(exported, tmp_path):
    model = onnx.load(exported)
    model.ir_version = 99
    (tmp_path / "new.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"new\.onnx cannot be read.*(?i:ir.?version)"):
        open_session(tmp_path / "new.onnx")


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


def test_deployed_file_takes_photos_and_gives_the_same_answers(exported, model, tmp_path):
    from PIL import Image

    from utils.datasets import evaluation_transform
    from utils.images import read_image

    generator = np.random.default_rng(0)
    for number in range(8):
        grid = generator.integers(0, 256, (5, 4, 3), dtype=np.uint8)
        Image.fromarray(grid).resize((90 + 7 * number, 120), Image.Resampling.BICUBIC).save(tmp_path / f"{number}.png")
    photos = sorted(tmp_path.glob("*.png"))
    transform = evaluation_transform(PREPROCESSING)
    batch = torch.stack([transform(read_image(photo)) for photo in photos])
    expected = model(batch).softmax(1).detach().numpy()
    for any_size in (True, False):
        target = tmp_path / "deploy.onnx"
        write_deployable(exported, target, PREPROCESSING, any_size=any_size)
        write_metadata(target, classes=list("abc"), preprocessing=PREPROCESSING)
        assert (deployed_answers(target, photos) == expected.argmax(1)).all()
    resized = np.stack([np.asarray(read_image(photo).resize((64, 64), Image.Resampling.BILINEAR)) for photo in photos])
    (probabilities,) = open_session(target).run(None, {"image": resized})
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)


def test_temperature_flattens_the_probabilities_and_keeps_the_answer(exported, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    results = []
    for temperature in (1.0, 3.0):
        write_deployable(exported, tmp_path / "deploy.onnx", PREPROCESSING, temperature, any_size=False)
        results.append(open_session(tmp_path / "deploy.onnx").run(None, {"image": pixels})[0])
    logits = [np.log(each) - np.log(each).mean(axis=1, keepdims=True) for each in results]
    np.testing.assert_allclose(logits[0], 3 * logits[1], atol=1e-4)


def test_interpolation_without_an_equal_is_refused(exported, tmp_path):
    with pytest.raises(InputError, match="lanczos.*any_size=False"):
        write_deployable(exported, tmp_path / "deploy.onnx", PREPROCESSING | {"interpolation": "lanczos"})
    assert not (tmp_path / "deploy.onnx").exists()
