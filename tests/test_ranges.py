"""Ranges of activations: those that ONNX Runtime's calibrator finds; its bugs that we work around are pinned."""

import json
import shutil

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from nets import ArrayReader, save_net
from onnx import helper
from onnxruntime.quantization import CalibrationMethod
from onnxruntime.quantization.calibrate import create_calibrator, load_tensors_data, save_tensors_data

from utils.onnx_quant import ranges
from utils.onnx_quant.ranges import CalibrationSet, measure_ranges

IMAGES = np.random.default_rng(0).normal(size=(22, 3, 16, 16)).astype(np.float32)
LARGE_IMAGES = np.random.default_rng(0).normal(size=(11, 3, 64, 64)).astype(np.float32)


@pytest.fixture
def attention_like(tmp_path):
    """A net in which, as in attention, the images are the second axis of some tensors, and no axis of others."""
    nodes = [
        helper.make_node("Relu", ["bias"], ["shared"], "relu_of_bias"),
        helper.make_node("Add", ["input", "shared"], ["shifted"], "add"),
        helper.make_node("Transpose", ["shifted"], ["turned"], "turn", perm=[1, 0, 2, 3]),
        helper.make_node("Relu", ["turned"], ["turned_relu"], "relu"),
        helper.make_node("Transpose", ["turned_relu"], ["turned_back"], "turn_back", perm=[1, 0, 2, 3]),
        helper.make_node("ReduceMean", ["turned_back", "axes"], ["output"], "mean", keepdims=0),
    ]
    bias = np.linspace(-1, 1, 3, dtype=np.float32)[:, None, None]
    return save_net(tmp_path / "net.onnx", nodes, {"bias": bias, "axes": np.array([2, 3])}, size=16)


def as_saved(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def found_by_onnxruntime(net, tmp_path, images, batch_size=4, **options) -> dict:
    calibrator = create_calibrator(
        net,
        augmented_model_path=str(tmp_path / "augmented.onnx"),
        calibrate_method=CalibrationMethod.MinMax,
        extra_options=options,
    )
    calibrator.collect_data(ArrayReader(images, batch_size))
    save_tensors_data(calibrator.compute_data(), tmp_path / "theirs.json")
    return as_saved(tmp_path / "theirs.json")


def found_by_us(net, tmp_path, images, batch_size=4, rows=slice(None)) -> dict:
    index = pd.DataFrame(index=range(len(images)))
    whole = CalibrationSet(net, None, index, measure_ranges(net, ArrayReader(images, batch_size)))
    shutil.copy(whole.part(rows).save_ranges(), tmp_path / "ours.json")
    return as_saved(tmp_path / "ours.json")


def assert_same(ours: dict, theirs: dict) -> None:
    """Hold ranges together but for rounding: ONNX Runtime measures with an unoptimized graph, we with a quick one."""
    assert set(ours["data"]) == set(theirs["data"])
    for name, found in ours["data"].items():
        for end in ("lowest", "highest"):
            values = [np.array(ranges[end]["data"]) for ranges in (found, theirs["data"][name])]
            np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-5, err_msg=name)


def range_of_input(path) -> tuple[float, float]:
    low, high = load_tensors_data(path)["input"].range_value
    return np.asarray(low).item(), np.asarray(high).item()


@pytest.mark.parametrize("batch_size", [1, 4, 22])
def test_saved_ranges_are_those_of_onnxruntimes_own_calibrator(net, prepared_conv_net, tmp_path, batch_size):
    for path, images in ((net, IMAGES), (prepared_conv_net, LARGE_IMAGES)):
        ours = found_by_us(path, tmp_path, images, batch_size)
        assert_same(ours, found_by_onnxruntime(path, tmp_path, images, batch_size))
        assert len(ours["data"]) >= len(onnx.load(path).graph.node)


@pytest.mark.parametrize("batch_size", [1, 3, 5])
@pytest.mark.parametrize("kind", ["net", "attention_like"])
def test_ranges_of_a_subset_are_those_of_calibrating_on_it_alone(request, tmp_path, kind, batch_size):
    path = request.getfixturevalue(kind)
    images = IMAGES * np.linspace(0.5, 2, len(IMAGES), dtype=np.float32)[:, None, None, None]
    for rows in ([7], [0, 1, 20], np.arange(0, 22, 2)):
        ours = found_by_us(path, tmp_path, images, batch_size, rows)
        assert_same(ours, found_by_onnxruntime(path, tmp_path, images[rows]))


def test_ranges_are_those_of_all_images_whatever_the_batch(net, tmp_path):
    images = IMAGES.copy()
    images[0, 0, 0, 0], images[-1, 1, 2, 3] = -50, 60  # in the first and in the short last batch
    found = [found_by_us(net, tmp_path, images, batch_size) for batch_size in (1, 4, 22)]
    assert range_of_input(tmp_path / "ours.json") == (-50, 60)
    assert found[0] == found[1] == found[2]


def test_ranges_are_measured_again_only_for_other_images(net, tmp_path, monkeypatch):
    measured = []

    def measure(path, reader) -> dict[str, np.ndarray]:
        measured.append(path)
        return measure_ranges(path, reader)

    class Images(list):
        transform = "as they are"

    def ranges_of(names: list[str]) -> dict[str, np.ndarray]:
        def image_set(index: pd.DataFrame) -> Images:
            return Images((torch.full((3, 16, 16), float(len(name))), 0) for name in index["path"])

        index = pd.DataFrame({"path": names, "sha256": names})
        return CalibrationSet(net, image_set, index, cache=tmp_path / "ranges.npz").ranges

    monkeypatch.setattr(ranges, "measure_ranges", measure)
    first, again = ranges_of(["a", "bb"]), ranges_of(["a", "bb"])
    assert len(measured) == 1 and set(first) == set(again)
    assert all((first[name] == again[name]).all() for name in first)
    assert ranges_of(["a", "ccc"])["input"].max() == 3 and len(measured) == 2


def test_pixels_from_minus_1_to_1_get_a_scale_without_ties(net, tmp_path):
    """With 2 / 255 every pixel would lie half-way between two integers."""
    levels = np.arange(256, dtype=np.float32) / 127.5 - 1
    images = np.resize(levels, (4, 3, 16, 16))
    found_by_us(net, tmp_path, images)
    low, high = range_of_input(tmp_path / "ours.json")
    assert (low, high) == (pytest.approx(-1.01), pytest.approx(1.01))
    ties = np.abs(levels / ((high - low) / 255) % 1 - 0.5)
    assert (ties > 1e-3).mean() > 0.98


def test_onnxruntime_still_drops_data_with_max_intermediate_outputs(net, tmp_path):
    """When this fails the bug (onnxruntime#32577) is mended, and the option may be used."""
    images = IMAGES.copy()
    images[0, 0, 0, 0] = 1000  # in the first batch, which is dropped
    found_by_onnxruntime(net, tmp_path, images)
    assert range_of_input(tmp_path / "theirs.json")[1] == 1000
    found_by_onnxruntime(net, tmp_path, images, max_intermediate_outputs=4)
    assert range_of_input(tmp_path / "theirs.json")[1] < 1000
