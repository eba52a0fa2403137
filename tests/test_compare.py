"""One interface for every model file, whoever made it, and the answers that are kept of the folds."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import fill_folder
from nets import to_onnx
from onnx import TensorProto, helper

from utils.checkpoint import keep_logits, save_checkpoint
from utils.compare_models.models import (
    check_alike,
    file_bytes,
    load_out_of_fold,
    model_paths,
    predict_all,
    score_models,
    unsplit_index,
    with_out_of_fold,
)
from utils.compare_models.predictor import Predictor
from utils.config import ROOT, InputError
from utils.datasets import ImageDataset, evaluation_transform
from utils.files import sha256
from utils.model import ConvNet
from utils.onnx_quant.export import check_parity
from utils.report import update_report

DETAILS = {"arch": "conv_net", "classes": ["사과", "cherry", "tomato"], "preprocessing": {"image_size": 64}}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One network as a checkpoint and as an ONNX file."""
    folder = tmp_path_factory.mktemp("내 모델")
    torch.manual_seed(0)
    model = ConvNet(3).eval()
    save_checkpoint(folder / "net.pth", model, **DETAILS)
    to_onnx(model, folder / "net.onnx", **DETAILS)
    return model, {"pytorch": folder / "net.pth", "onnx": folder / "net.onnx"}


def test_both_files_give_the_answers_of_the_network(files):
    model, paths = files
    images = np.random.default_rng(0).normal(size=(70, 3, 64, 64)).astype(np.float32)  # more than one call's worth
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    for path in paths.values():
        predictor = Predictor(path, threads=1)
        for count in (1, 7, 70):
            assert predictor(images[:count]).shape == (count, 3)
        assert np.abs(predictor(images) - expected).max() < 1e-4
        assert DETAILS.items() <= predictor.details.items()
    assert (check_parity(model, paths["onnx"], images[:9], [1, 2, 7])["max_abs_diff"] < 1e-4).all()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("gone.onnx", None, "does not exist: run onnx_quant.ipynb"),
        ("gone.pth", None, "does not exist: run train.ipynb"),
        ("empty.onnx", b"", r"empty \(0 bytes\)"),
        ("cut.onnx", "cut", "truncated or not of this format"),
        ("net.tflite", b"TFL3", r"a model file ends in .pth or .onnx"),
    ],
)
def test_file_that_is_no_model_is_explained(files, tmp_path, name, content, words):
    if content is not None:
        half = files[1]["onnx"].read_bytes()[:50_000]
        (tmp_path / name).write_bytes(half if content == "cut" else content)
    with pytest.raises(InputError, match=words) as error:
        Predictor(tmp_path / name)
    assert name in str(error.value)


def foreign(path: Path, batch: int | str = "batch", name: str = "pixels", kind: int = TensorProto.FLOAT) -> Path:
    """Write someone else's model: mean of each channel → 3 logits, without metadata, at 8×8 pixels."""
    inputs = [helper.make_tensor_value_info(name, kind, [batch, 3, 8, 8])]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 3])]
    nodes = [
        helper.make_node("Cast", [name], ["float"], to=TensorProto.FLOAT),
        helper.make_node("GlobalAveragePool", ["float"], ["means"]),
        helper.make_node("Flatten", ["means"], ["scores"]),
    ]
    graph = helper.make_graph(nodes, "foreign", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


PLAIN = {"image_size": 8, "interpolation": "bilinear", "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}


@pytest.mark.parametrize("batch", ["batch", 1, 4])
def test_foreign_file_of_any_input_name_and_batch_answers(tmp_path, batch):
    images = np.random.default_rng(0).random((6, 3, 8, 8)).astype(np.float32)
    predictor = Predictor(foreign(tmp_path / "foreign.onnx", batch), threads=1, preprocessing=PLAIN)
    assert predictor(images) == pytest.approx(images.mean(axis=(2, 3)), abs=1e-6)
    assert predictor.preprocessing == PLAIN


def test_foreign_file_without_preprocessing_says_which_setting_is_missing(tmp_path):
    predictor = Predictor(foreign(tmp_path / "foreign.onnx"), threads=1)
    with pytest.raises(InputError, match="foreign.onnx does not say how its images are prepared: set PREPROCESSING"):
        predictor.preprocessing  # noqa: B018
    wrong = Predictor(tmp_path / "foreign.onnx", threads=1, preprocessing=PLAIN | {"image_size": 64})
    with pytest.raises(InputError, match="takes 8 × 8 pixels, but its preprocessing makes 64 × 64"):
        wrong.preprocessing  # noqa: B018


def test_file_that_takes_no_normalized_images_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"takes 'pixels' tensor\(uint8\).*expected a single input, tensor\(float\)"):
        Predictor(foreign(tmp_path / "bytes.onnx", kind=TensorProto.UINT8))


def test_bytes_count_what_lies_outside_and_its_absence_is_named(files, tmp_path):
    model = onnx.load(files[1]["onnx"])
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="net.onnx.data", size_threshold=0)
    inside, outside = (tmp_path / name for name in ("net.onnx", "net.onnx.data"))
    assert file_bytes(inside) == inside.stat().st_size + outside.stat().st_size
    outside.unlink()
    with pytest.raises(InputError, match="net.onnx needs net.onnx.data beside it"):
        file_bytes(inside)
    assert file_bytes(files[1]["onnx"]) == files[1]["onnx"].stat().st_size


@pytest.fixture
def photos(tmp_path) -> Path:
    return fill_folder(tmp_path / "data", {"cherry": 3, "tomato": 4, "사과": 5})


def test_all_models_answer_all_images_each_in_its_own_preprocessing(files, photos, tmp_path):
    index, classes = unsplit_index(photos), DETAILS["classes"]
    models = {"foreign": Predictor(foreign(tmp_path / "foreign.onnx"), threads=1, preprocessing=PLAIN)}
    models["own"] = Predictor(files[1]["pytorch"], threads=1, preprocessing=PLAIN | {"image_size": 64})
    logits = predict_all(models, photos, index, classes)
    assert list(logits) == ["foreign", "own"]
    for name, size in {"foreign": 8, "own": 64}.items():
        transform = evaluation_transform(PLAIN | {"image_size": size})
        images = np.stack([image for image, _ in ImageDataset(photos, index, classes, transform)])
        assert logits[name] == pytest.approx(models[name](images), abs=1e-5)
    dark = predict_all(
        {"foreign": models["foreign"]}, photos, index, classes, lambda image: image.point(lambda level: level // 2)
    )
    assert (dark["foreign"] < logits["foreign"]).all()


def test_scores_have_the_folds_above_them_where_there_are_any(photos):
    index = unsplit_index(photos)
    right = np.eye(3)[index["class"].map(DETAILS["classes"].index)]
    scores = score_models({"right": right, "wrong": -right}, index, DETAILS["classes"])
    assert scores["score"].tolist() == [1, 0] and (scores["low"] < scores["high"]).all()
    train = {"oof_macro_f1": 0.5, "oof_macro_f1_ci95": [0.4, 0.6]}
    assert with_out_of_fold(scores, train).loc["out of fold"].tolist() == [0.5, 0.4, 0.6]
    assert with_out_of_fold(scores, {}).equals(scores)


def test_model_for_other_classes_is_refused(files, photos):
    index = unsplit_index(photos)
    swapped = ["tomato", "cherry", "사과"]
    model = Predictor(files[1]["onnx"], threads=1, preprocessing=PLAIN | {"image_size": 64})
    with pytest.raises(InputError, match="net.onnx predicts 사과, cherry, tomato, but the folder holds tomato"):
        predict_all({"onnx": model}, photos, index, swapped)


def test_files_of_different_runs_are_not_compared(files, tmp_path):
    save_checkpoint(tmp_path / "other.pth", files[0], **DETAILS | {"split_hash": "another"})
    with pytest.raises(InputError, match="other.pth and .*net.onnx differ in split_hash"):
        check_alike([Predictor(files[1]["onnx"]), Predictor(tmp_path / "other.pth")])


def test_without_a_network_only_other_peoples_files_are_compared(tmp_path):
    others = {"mine": "models/mine.onnx"}
    assert model_paths(tmp_path, "", others) == {"mine": ROOT / "models" / "mine.onnx"}
    assert list(model_paths(tmp_path, "conv_net", others)) == ["pytorch", "onnx", "int8", "mine"]


@pytest.fixture
def folds(tmp_path, photos):
    """A run whose folds have answered, as onnx_quant.ipynb leaves it."""
    index = unsplit_index(photos)
    logits = {name: np.random.default_rng(0).normal(size=(len(index), 3)) for name in ("onnx", "int8")}
    for name in ("split.csv", "fine_tuned_net.pth"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    made_from = {"split": sha256(tmp_path / "split.csv"), "model": sha256(tmp_path / "fine_tuned_net.pth")}
    keep_logits(tmp_path / "out_of_fold_net.npz", index["path"], lambda: logits, **made_from, recipe="U8S8")
    update_report(tmp_path, "quantization", {"fold_networks": 3})
    return tmp_path, index, logits


def test_answers_of_the_folds_are_read_as_they_were_written(folds):
    run, index, logits = folds
    read = load_out_of_fold(run, "net", index, recipe="U8S8")
    assert set(read) == {"onnx", "int8"} and all((read[name] == logits[name]).all() for name in read)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ("split.csv", "out_of_fold_net.npz was made from another split: run onnx_quant.ipynb"),
        ("fine_tuned_net.pth", "was made from another model: run onnx_quant.ipynb"),
        ("recipe", "was made from another recipe: run onnx_quant.ipynb"),
        ("images", "was made from another set of images: run onnx_quant.ipynb"),
        ("out_of_fold_net.npz", r"out_of_fold_net.npz cannot be read: it is truncated.* run onnx_quant.ipynb"),
    ],
)
def test_answers_of_another_split_model_or_recipe_are_refused_by_name(folds, changed, words):
    run, index, _ = folds
    if (run / changed).exists():
        (run / changed).write_text("changed", encoding="utf-8")
    if changed == "images":
        index = index.iloc[1:]
    with pytest.raises(InputError, match=words):
        load_out_of_fold(run, "net", index, recipe="S8S8" if changed == "recipe" else "U8S8")


def test_folds_that_were_left_out_are_not_asked_for_and_missing_ones_are(folds):
    run, index, _ = folds
    (run / "out_of_fold_net.npz").unlink()
    with pytest.raises(InputError, match="out_of_fold_net.npz does not exist: run onnx_quant.ipynb"):
        load_out_of_fold(run, "net", index, recipe="U8S8")
    update_report(run, "quantization", {"fold_networks": 0})
    assert load_out_of_fold(run, "net", index, recipe="U8S8") == {}
