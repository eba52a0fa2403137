"""One interface for every model file, and a verdict that follows from the numbers alone."""

import numpy as np
import pandas as pd
import pytest
import torch

from utils.compare import Predictor, decide, measure_latency
from utils.config import InputError
from utils.export import check_parity, write_metadata
from utils.model import ConvNet, save_checkpoint

DETAILS = {"arch": "conv_net", "classes": ["사과", "cherry", "tomato"], "preprocessing": {"image_size": 64}}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One network as a checkpoint and as an ONNX file."""
    folder = tmp_path_factory.mktemp("내 모델")
    torch.manual_seed(0)
    model = ConvNet(3).eval()
    save_checkpoint(folder / "net.pth", model, **DETAILS)
    torch.onnx.export(
        model,
        (torch.randn(2, 3, 64, 64),),
        folder / "net.onnx",
        input_names=["input"],
        output_names=["output"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
    )
    write_metadata(folder / "net.onnx", **DETAILS)
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


def test_latency_has_a_row_per_model_and_batch(files):
    images = np.zeros((2, 3, 64, 64), np.float32)
    table = measure_latency(files[1], images, batch_sizes=[1, 3], rounds=1, threads=1)
    assert set(zip(table["model"], table["batch"], strict=True)) == {
        (name, size) for name in ("pytorch", "onnx") for size in (1, 3)
    }
    assert (table["p50"] > 0).all() and (table["p50"] <= table["p90"]).all() and (table["p90"] <= table["p99"]).all()
    memory = table.groupby("model")["peak_rss_mb"].max()
    assert memory["onnx"] < memory["pytorch"], "the process that runs ONNX has loaded torch"


def verdict(margin: float = 0.02, **changes) -> dict[str, str]:
    """Decide about an INT8 file that is better in every way, but for `changes`."""
    facts = {"bytes": 40, "latency": 0.5, "low": -0.01, "recall": 0.9, "majority": 0.9, "pytorch": 2.0} | changes
    models = pd.DataFrame(
        {"bytes": [110, 100, facts["bytes"]], "latency_ms": [facts["pytorch"], 1.0, facts["latency"]]},
        index=["pytorch", "onnx", "int8"],
    )
    recall = pd.DataFrame({"onnx": [0.9, 0.9], "int8": [facts["majority"], facts["recall"]]}, index=["apple", "tomato"])
    return decide(models, (facts["low"], 0.01), recall, ["tomato"], margin)


def test_int8_ships_when_nothing_speaks_against_it():
    assert verdict() == {
        "ship": "int8",
        "reason": "40% of ONNX's size, 0.50 of its latency, no worse within 0.02 macro-F1",
    }
    assert verdict(latency=1.0, low=-0.02)["ship"] == "int8"  # not slower, and within the margin
    assert verdict(majority=0.5)["ship"] == "int8"  # macro-F1 speaks for the majority


OBJECTIONS = {
    "not smaller (120% of ONNX)": {"bytes": 120},
    "slower (1.50 times ONNX's time": {"latency": 1.5},
    "a loss of 0.030 macro-F1 cannot be excluded": {"low": -0.03},
    "tomato loses 10.0% of its recall": {"recall": 0.8},
}


@pytest.mark.parametrize("words", OBJECTIONS)
def test_each_objection_keeps_int8_back_and_is_named(words):
    result = verdict(**OBJECTIONS[words])
    assert result["ship"] == "onnx"
    assert words in result["reason"]
    assert not [other for other in OBJECTIONS if other != words and other in result["reason"]]


def test_all_objections_are_named_and_the_faster_file_ships():
    changes = {name: value for objection in OBJECTIONS.values() for name, value in objection.items()}
    result = verdict(**changes, pytorch=0.9)
    assert result["ship"] == "pytorch"
    assert all(words in result["reason"] for words in OBJECTIONS)
