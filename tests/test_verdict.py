"""The verdict: what is planted is found, and INT8 has to prove itself."""

import numpy as np
import pandas as pd
import pytest
from nets import residual_net, to_int8

from utils.compare_models.predictor import Predictor
from utils.compare_models.verdict import compare_answers, decide

CLASSES = ["apple", "cherry", "tomato"]


def pair(low: float = -0.005, high: float = 0.01, tomato: tuple = (0.0, -0.05, 0.05)) -> dict:
    recall = {"apple": (-0.5, -0.6, -0.4), "tomato": tomato}
    return {"images": 400, "macro_f1_delta_ci95": (low, high), "recall_delta": recall}


def verdict(ratio=(0.5, 0.6), size=40, pytorch=2.0, files=None, **changes) -> dict[str, str]:
    """Decide about an INT8 file that is better in every way, but for `changes`."""
    models = pd.DataFrame({"bytes": [110, 100, size], "latency_ms": [pytorch, 1.0, ratio[0]]})
    models.index = ["pytorch", "onnx", "int8"]
    pairs = {"out of fold": pair(**changes), "in these files": files or pair()}
    return decide(models, ratio, pairs, ["tomato"], margin=0.01, minority_margin=0.1)


def test_int8_ships_when_nothing_speaks_against_it():
    assert verdict() == {
        "ship": "int8",
        "reason": "40% of onnx's size, 0.50 to 0.60 of its latency, no worse within 0.01 macro-F1",
    }
    assert verdict(ratio=(0.97, 1.03))["ship"] == "int8"  # as fast, as far as one can tell
    assert verdict(low=-0.01)["ship"] == "int8"  # just within the margin


OBJECTIONS = {
    "not smaller (120% of onnx)": {"size": 120},
    "it is slower (1.20 to 1.50 times onnx's time": {"ratio": (1.2, 1.5)},
    "that it is slower cannot be excluded (0.80 to 1.50 times": {"ratio": (0.8, 1.5)},
    "a loss of 0.030 macro-F1 cannot be excluded out of fold (400 images)": {"low": -0.03},
    "it loses 0.010 to 0.030 macro-F1 out of fold": {"low": -0.03, "high": -0.01},
    "tomato loses 3.0% of its recall out of fold": {"tomato": (-0.03, -0.09, 0.0)},
    "that tomato loses 20% of its recall cannot be excluded out of fold": {"tomato": (0.0, -0.2, 0.2)},
    "a loss of 0.040 macro-F1 cannot be excluded in these files": {"files": pair(low=-0.04)},
}


@pytest.mark.parametrize("words", OBJECTIONS)
def test_each_objection_keeps_int8_back_and_is_named(words):
    result = verdict(**OBJECTIONS[words])
    assert result["ship"] == "onnx"
    assert words in result["reason"]
    assert not [other for other in OBJECTIONS if other != words and other in result["reason"]]


def test_all_objections_are_named_and_the_faster_file_ships():
    result = verdict(size=120, ratio=(1.2, 1.5), low=-0.03, tomato=(-0.03, -0.09, 0.0), pytorch=0.9)
    assert result["ship"] == "pytorch"
    assert result["reason"].count(" and ") == 3


def test_too_few_images_are_called_that_and_not_a_loss():
    labels = np.repeat([0, 1, 2], 15)
    logits = np.eye(3)[labels]
    found = compare_answers(labels, logits, logits, np.arange(45), CLASSES)
    assert found["agreement"] == 1 and found["macro_f1_delta"] == 0
    models = pd.DataFrame({"bytes": [100, 40], "latency_ms": [1, 0.5]}, index=["onnx", "int8"])
    reason = decide(models, (0.5, 0.6), {"out of fold": found}, [], 0.01, 0.1)["reason"]
    assert "cannot be excluded out of fold (45 images)" in reason and "loses" not in reason


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A float model, pictures it is fairly sure about, and INT8 files: as it should be, and two that are spoilt."""
    folder = tmp_path_factory.mktemp("files")
    generator = np.random.default_rng(0)
    float_path = residual_net(folder / "float.onnx", seed=3)
    images = (generator.normal(size=(24000, 3, 16, 16)) * 0.3).astype(np.float32)
    images += generator.normal(size=(24000, 3, 1, 1)).astype(np.float32)  # a color each
    logits = Predictor(float_path, threads=1)(images)
    ordered = np.sort(logits, axis=1)
    order = np.argsort(ordered[:, 1] - ordered[:, 2])
    sure = np.concatenate(
        [order[logits[order].argmax(1) == label][:count] for label, count in enumerate((400, 400, 300))]
    )
    images, answers = images[sure], logits[sure].argmax(1)
    noise = generator.normal(size=(32, 3, 16, 16)).astype(np.float32) * 0.05
    paths = {
        "equal": to_int8(float_path, folder / "equal.onnx", images[::5]),
        "calibrated on noise": to_int8(float_path, folder / "noise.onnx", noise),
        "saturated": to_int8(float_path, folder / "saturated.onnx", images[::5] * 0.02),
    }
    wrong = generator.random(len(answers)) < 0.1
    labels = np.where(wrong, (answers + generator.integers(1, 3, len(answers))) % 3, answers)
    return float_path, paths, images, labels


@pytest.mark.parametrize("name", ["equal", "calibrated on noise", "saturated"])
def test_planted_bad_file_is_refused_and_an_equal_one_passes(files, name):
    float_path, paths, images, labels = files
    logits = [Predictor(path, threads=1)(images) for path in (float_path, paths[name])]
    found = compare_answers(labels, *logits, np.arange(len(labels)), CLASSES)
    models = pd.DataFrame({"bytes": [100, 40], "latency_ms": [1, 0.5]}, index=["onnx", "int8"])
    smallest = CLASSES[np.bincount(labels).argmin()]
    result = decide(models, (0.5, 0.6), {"in these files": found}, [smallest], 0.01, 0.1)
    assert result["ship"] == ("int8" if name == "equal" else "onnx"), result["reason"]
    if name != "equal":
        assert "macro-F1 in these files" in result["reason"] and "it loses" in result["reason"]


def test_planted_drop_on_the_minority_is_seen():
    """Twelve of four hundred tomatoes; everything else, 2,600 images, as it was."""
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [1300, 1300, 400])
    first = np.where(generator.random(3000) < 0.05, (labels + 1) % 3, labels)
    second = first.copy()
    second[np.flatnonzero((labels == 2) & (first == 2))[:12]] = 0
    groups = np.arange(3000) // 5
    found = compare_answers(labels, np.eye(3)[first], np.eye(3)[second], groups, CLASSES)
    assert found["flips"] == {"fixed": 0, "broken": 12}
    assert found["recall_delta"]["tomato"][0] == pytest.approx(-0.03)
    assert found["recall_delta"]["tomato"][2] < 0 < found["recall_delta"]["apple"][2]
    models = pd.DataFrame({"bytes": [100, 40], "latency_ms": [1, 0.5]}, index=["onnx", "int8"])
    result = decide(models, (0.5, 0.6), {"out of fold": found}, ["tomato"], 0.02, 0.1)
    assert result["ship"] == "onnx"
    assert "tomato loses 3.0% of its recall out of fold" in result["reason"]
    unaware = decide(models, (0.5, 0.6), {"out of fold": found}, [], 0.02, 0.1)
    assert unaware["ship"] == "int8", "the drop would have been seen anyway: the test shows nothing"
