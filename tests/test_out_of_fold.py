"""Out-of-fold answers lie in a file that says what they were made from, and are not taken for anything else."""

import json

import numpy as np
import pandas as pd
import pytest

from utils.checkpoint import keep_logits, load_logits
from utils.config import InputError

IMAGES = pd.Series(["사과/1.jpg", "cherry pie/2.jpg", "tomato/3.jpg"])
LOGITS = {"onnx": np.arange(6.0).reshape(3, 2), "int8": np.array([[1, 2], [np.nan, np.nan], [3, 4]])}
MADE_FROM = {"split": "s", "model": "m", "recipe": "U8S8 per-channel", "code": "c"}


@pytest.fixture
def path(tmp_path):
    keep_logits(tmp_path / "out_of_fold_net.npz", IMAGES, lambda: LOGITS, **MADE_FROM)
    return tmp_path / "out_of_fold_net.npz"


def test_answers_come_back_as_they_were(path):
    loaded = load_logits(path, IMAGES, split="s", model="m", recipe="U8S8 per-channel")
    assert loaded.keys() == LOGITS.keys()
    assert all(np.array_equal(loaded[name], LOGITS[name], equal_nan=True) for name in LOGITS)


@pytest.mark.parametrize("changed", ["split", "model", "recipe", "code", "anything new"])
def test_answers_of_something_else_are_refused_by_name(path, changed):
    expected = rf"out_of_fold_net\.npz was made from another {changed}: run onnx_quant\.ipynb to make it again"
    with pytest.raises(InputError, match=expected):
        load_logits(path, IMAGES, **(MADE_FROM | {changed: "other"}))


def test_all_that_changed_is_named_at_once(path):
    with pytest.raises(InputError, match="made from another split and recipe: "):
        load_logits(path, IMAGES, **(MADE_FROM | {"split": "other", "recipe": "other"}))


def test_answers_to_other_images_are_refused(path):
    for images in (IMAGES.iloc[::-1], IMAGES.iloc[:2]):
        with pytest.raises(InputError, match="made from another set of images"):
            load_logits(path, images, **MADE_FROM)


@pytest.mark.parametrize(
    ("content", "cause"),
    [(b"", "empty"), (b"<!DOCTYPE html><html></html>", "web page"), (None, "truncated"), ("foreign", "not of this")],
)
def test_damaged_and_foreign_files_are_explained(path, content, cause):
    if content == "foreign":
        np.savez(path, logits=LOGITS["onnx"])
    else:
        path.write_bytes(path.read_bytes()[:300] if content is None else content)
    with pytest.raises(InputError, match=rf"out_of_fold_net\.npz cannot be read: .*{cause}.*run onnx_quant"):
        load_logits(path, IMAGES, **MADE_FROM)


def test_absent_file_is_explained(tmp_path):
    with pytest.raises(InputError, match=r"out_of_fold_net\.npz does not exist: run onnx_quant\.ipynb"):
        load_logits(tmp_path / "out_of_fold_net.npz", IMAGES, **MADE_FROM)


def test_answers_are_computed_once_and_again_when_what_made_them_changes(tmp_path):
    path, computed = tmp_path / "answers.npz", []

    def compute() -> dict[str, np.ndarray]:
        computed.append(1)
        return {"onnx": np.full((3, 2), len(computed))}

    assert keep_logits(path, IMAGES, compute, **MADE_FROM)["onnx"][0, 0] == 1
    assert keep_logits(path, IMAGES, compute, **MADE_FROM)["onnx"][0, 0] == 1
    assert keep_logits(path, IMAGES, compute, **(MADE_FROM | {"code": "edited"}))["onnx"][0, 0] == 2
    assert keep_logits(path, IMAGES, compute, ["other folds"], **(MADE_FROM | {"code": "edited"}))["onnx"][0, 0] == 3
    path.write_bytes(b"")
    assert keep_logits(path, IMAGES, compute, **MADE_FROM)["onnx"][0, 0] == 4
    assert json.loads(str(np.load(path)["made_from"])) == MADE_FROM
