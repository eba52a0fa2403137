"""The calibration reader feeds exactly what the model will predict on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fill_folder

from utils.config import InputError
from utils.datasets import ImageDataset, evaluation_transform, make_loader
from utils.images import read_image, scan_folder
from utils.onnx_quant.calibration import ImageFolderDataReader

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


def test_says_its_length_and_can_be_read_again(photos):
    reader = make_reader(photos, evaluation_transform(PREPROCESSING))
    assert len(reader) == 3
    first = np.concatenate(read_all(reader))
    assert reader.get_next() is None
    reader.rewind()
    assert (np.concatenate(read_all(reader)) == first).all()
    reader.rewind()
    reader.get_next()
    reader.rewind()  # half-way, too
    assert (np.concatenate(read_all(reader)) == first).all()


def test_onnx_runtime_can_iterate_over_it(photos):
    reader = make_reader(photos, evaluation_transform(PREPROCESSING))
    assert sum(len(feed["input"]) for feed in reader) == 11


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("position", [0, 5, 10])
def test_image_that_is_not_finite_is_named(photos, position, value):
    index = photos[1]
    seen = []

    def transform(image) -> torch.Tensor:
        seen.append(image)
        pixels = evaluation_transform(PREPROCESSING)(image)
        if len(seen) - 1 == position:
            pixels[1, 2, 3] = value
        return pixels

    reader = make_reader(photos, transform)
    with pytest.raises(InputError, match="pixels are not finite numbers") as error:
        read_all(reader)
    assert Path(index["path"][position]).as_posix() in str(error.value).replace("\\", "/")


def test_after_a_rewind_the_right_image_is_named(photos):
    index, passes = photos[1], []

    def transform(image) -> torch.Tensor:
        passes.append(image)
        bad = len(passes) == len(index) + 7  # the seventh image of the second pass
        return torch.full((3, 4, 4), float("nan") if bad else 0.0)

    reader = make_reader(photos, transform)
    read_all(reader)
    reader.rewind()
    with pytest.raises(InputError) as error:
        read_all(reader)
    assert index["path"][6] in str(error.value).replace("\\", "/")
