"""Calibration shows the network exactly what it will predict on, once, whatever is drawn from it."""

from functools import partial

import numpy as np
import onnx
import pytest
from conftest import fill_folder
from nets import PLAIN, calibration_set

from bench.notebooks import define
from utils.datasets import ImageDataset, evaluation_transform, make_loader
from utils.images import read_image, scan_folder
from utils.onnx_quant.ranges import CalibrationSet, ImageFolderDataReader, evenly_spaced

PREPROCESSING = {"image_size": 32, "interpolation": "bicubic", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = fill_folder(tmp_path_factory.mktemp("내 사진"), {"사과": 6, "tomato": 5})
    return folder, scan_folder(folder)[0]


def make_reader(photos, transform, batch_size: int = 4) -> ImageFolderDataReader:
    dataset = ImageDataset(*photos, ["tomato", "사과"], transform)
    return ImageFolderDataReader(make_loader(dataset, batch_size))


def read_all(reader: ImageFolderDataReader) -> list[np.ndarray]:
    return [feed["input"] for feed in iter(reader.get_next, None)]


def test_feeds_every_image_in_order_as_the_model_will_see_it(photos):
    folder, index = photos
    transform = evaluation_transform(PREPROCESSING)
    batches = read_all(make_reader(photos, transform))
    expected = np.stack([transform(read_image(folder / path)).numpy() for path in index["path"]])
    assert [len(batch) for batch in batches] == [4, 4, 3]  # the short last batch is fed, too
    assert np.concatenate(batches).dtype == np.float32
    assert (np.concatenate(batches) == expected).all()


def test_onnx_runtime_can_iterate_over_it(photos):
    reader = make_reader(photos, evaluation_transform(PREPROCESSING))
    assert len(reader) == 3
    assert sum(len(feed["input"]) for feed in reader) == 11


# --- a set of images and the ranges over them

IMAGES = np.random.default_rng(0).normal(size=(22, 3, 16, 16)).astype(np.float32)
KNOWN_RANGES = "        calibration_cache_path=calibration_set.save_ranges(),\n"


@pytest.mark.parametrize("part", [False, True])
def test_known_ranges_are_what_the_visible_call_would_find_by_itself(net, tmp_path, part):
    """Without them, `quantize_static` reads the images; the INT8 file is the same but for the rounding of scales."""
    images = calibration_set(net, IMAGES)
    if part:
        images = images.part(np.array([2, 3, 11]))
    files = []
    for edits in ({}, {KNOWN_RANGES: ""}):
        (quantize,) = define("onnx_quant", "quantize", edits=edits)
        quantize(net, images, tmp_path / "int8.onnx", PLAIN._replace(correct_biases=True))
        files.append(onnx.load(tmp_path / "int8.onnx").graph)
    assert [node.name for node in files[0].node] == [node.name for node in files[1].node]
    for ours, theirs in zip(files[0].initializer, files[1].initializer, strict=True):
        np.testing.assert_allclose(*map(onnx.numpy_helper.to_array, (ours, theirs)), rtol=1e-5, err_msg=ours.name)


def test_part_is_the_set_of_these_images(net):
    whole, rows = calibration_set(net, IMAGES), np.array([1, 4, 20])
    part, alone = whole.part(rows), calibration_set(net, IMAGES[rows])
    assert len(part) == 3
    assert (np.concatenate(read_all(part.reader)) == IMAGES[rows]).all()
    assert part.save_ranges().read_bytes() == alone.save_ranges().read_bytes()
    assert part.save_ranges() != part.save_ranges()


def test_sample_is_evenly_spaced(net):
    whole = calibration_set(net, IMAGES)
    assert (whole.sample(4) == IMAGES[[0, 7, 14, 21]]).all()
    assert (whole.sample(99) == IMAGES).all()
    assert len(whole.sample()) == 22  # of 16 pixels a side, 32 if there were so many
    assert evenly_spaced(5, 9) == [0, 1, 2, 3, 4] and evenly_spaced(9, 1) == [0]


def test_photos_of_a_folder_calibrate_as_the_model_will_see_them(net, photos, tmp_path):
    folder, index = photos
    transform = evaluation_transform(PREPROCESSING | {"image_size": 16})
    image_set = partial(ImageDataset, folder, classes=["tomato", "사과"], transform=transform)
    images = np.stack([transform(read_image(folder / path)).numpy() for path in index["path"]])
    ranges = CalibrationSet(net, image_set, index).ranges
    assert (ranges["input"] == np.stack([images.min(axis=(1, 2, 3)), images.max(axis=(1, 2, 3))], axis=1)).all()
