"""The deployed file: photos in, calibrated probabilities out, the same answers as the model within."""

import numpy as np
import onnx
import pytest
import torch
from nets import CLASSES, PREPROCESSING
from PIL import Image

from utils.config import InputError
from utils.datasets import evaluation_transform
from utils.images import read_image
from utils.onnx_quant.deploy import predict_deployed, write_checked, write_deployable
from utils.predict import Classifier
from utils.session import open_session, read_metadata

DETAILS = {"classes": CLASSES, "preprocessing": PREPROCESSING}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("내 사진"), np.random.default_rng(0)
    for number in range(8):
        grid = generator.integers(0, 256, (5, 4, 3), dtype=np.uint8)
        Image.fromarray(grid).resize((90 + 7 * number, 120), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return sorted(folder.glob("*.png"))


@pytest.fixture(scope="module")
def expected(conv_net, photos):
    """Probabilities that torch gives, from photos as training prepares them."""
    transform = evaluation_transform(PREPROCESSING)
    batch = torch.stack([transform(read_image(photo)) for photo in photos])
    with torch.inference_mode():
        return conv_net(batch).softmax(1).numpy()


@pytest.mark.parametrize("any_size", [True, False])
def test_deployed_file_takes_photos_and_gives_the_same_answers(conv_net_file, photos, expected, tmp_path, any_size):
    write_deployable(conv_net_file, tmp_path / "deploy.onnx", DETAILS, any_size)
    assert (predict_deployed(tmp_path / "deploy.onnx", photos) == expected.argmax(1)).all()
    classifier = Classifier(tmp_path / "deploy.onnx")
    probabilities = np.stack([classifier.probabilities(photo) for photo in photos])
    np.testing.assert_allclose(probabilities, expected, atol=1e-2 if any_size else 1e-4)


def test_deployed_file_says_what_the_model_within_says_of_itself(conv_net_file, tmp_path):
    write_deployable(conv_net_file, tmp_path / "deploy.onnx", DETAILS)
    metadata = read_metadata(open_session(tmp_path / "deploy.onnx"))
    assert np.shape(metadata.pop("self_check")) == (8, len(CLASSES))
    assert metadata == read_metadata(open_session(conv_net_file)) and metadata["classes"] == CLASSES


def test_file_that_a_tool_took_the_metadata_from_is_refused_with_the_tools_that_do(conv_net_file, tmp_path):
    write_deployable(conv_net_file, tmp_path / "deploy.onnx", DETAILS)
    onnx.utils.extract_model(tmp_path / "deploy.onnx", tmp_path / "bare.onnx", ["image"], ["probabilities"])
    with pytest.raises(InputError, match="bare.onnx has lost its metadata"):
        Classifier(tmp_path / "bare.onnx")


def test_deployed_file_fixes_no_batch_and_names_one_operator_set(conv_net_file, tmp_path):
    """Converters that set a batch of 1 fail where a tensor within, or a second operator set, says otherwise."""
    write_deployable(conv_net_file, tmp_path / "deploy.onnx", DETAILS)
    model = onnx.load(tmp_path / "deploy.onnx")
    assert not model.graph.value_info and not model.functions
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]


def test_large_photo_is_resized_in_its_8_bits(conv_net_file, tmp_path):
    """As floats, the 48 megapixels of a phone would take four times the memory."""
    write_deployable(conv_net_file, tmp_path / "deploy.onnx", DETAILS)
    first = onnx.load(tmp_path / "deploy.onnx").graph.node[0]
    assert (first.op_type, first.input[0]) == ("Resize", "image")


@pytest.mark.parametrize("any_size", [True, False])
def test_file_that_predicts_otherwise_than_where_it_was_made_is_refused(conv_net_file, photos, tmp_path, any_size):
    """As in a runtime whose arithmetic is wrong: here, another weight stands in the file than when it was made."""
    path = tmp_path / "deploy.onnx"
    write_deployable(conv_net_file, path, DETAILS, any_size)
    assert Classifier(path).probabilities(photos[0]).sum() == pytest.approx(1)
    model = onnx.load(path)
    bias = next(tensor for tensor in model.graph.initializer if tensor.dims == [len(CLASSES)])
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32([1, 0, 0]), bias.name))
    onnx.save(model, path)
    with pytest.raises(InputError, match="does not predict here what it did where it was made: ONNX Runtime .* moves"):
        Classifier(path)


def test_photos_of_any_size_are_taken_if_the_answers_stay(conv_net_file, photos, expected, tmp_path):
    answers = expected.argmax(1)
    any_size, same = write_checked(conv_net_file, tmp_path / "deploy.onnx", DETAILS, photos, answers)
    assert (any_size, same) == (True, 1.0)
    assert isinstance(open_session(tmp_path / "deploy.onnx").get_inputs()[0].shape[1], str)


@pytest.mark.parametrize("reason", ["answers", "interpolation"])
def test_one_size_is_taken_if_a_resize_in_the_graph_will_not_do(conv_net_file, photos, expected, tmp_path, reason):
    answers, details = expected.argmax(1), DETAILS
    if reason == "answers":
        answers = (answers + np.eye(8, dtype=int)[0]) % 3  # one photo in eight is answered otherwise
    else:
        details = DETAILS | {"preprocessing": PREPROCESSING | {"interpolation": "lanczos"}}
    any_size, _ = write_checked(conv_net_file, tmp_path / "deploy.onnx", details, photos, answers)
    assert not any_size
    assert open_session(tmp_path / "deploy.onnx").get_inputs()[0].shape[1:] == [64, 64, 3]


def test_temperature_flattens_the_probabilities_and_keeps_the_answer(conv_net_file, photos, expected, tmp_path):
    answers, results = expected.argmax(1), []
    for temperature in (1.0, 3.0):
        details = DETAILS | {"temperature": temperature}
        write_checked(conv_net_file, tmp_path / "deploy.onnx", details, photos, answers)
        results.append(Classifier(tmp_path / "deploy.onnx").probabilities(photos[0]))
    logits = [np.log(probabilities) - np.log(probabilities).mean() for probabilities in results]
    np.testing.assert_allclose(logits[0], 3 * logits[1], atol=1e-4)


def test_interpolation_without_an_equal_is_refused(conv_net_file, tmp_path):
    details = DETAILS | {"preprocessing": PREPROCESSING | {"interpolation": "lanczos"}}
    with pytest.raises(InputError, match="lanczos.*any_size=False"):
        write_deployable(conv_net_file, tmp_path / "deploy.onnx", details)
    assert not (tmp_path / "deploy.onnx").exists()
