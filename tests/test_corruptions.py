"""Mild faults: the same every time, of the same size, and mild."""

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from utils.compare_models.corruptions import CORRUPTIONS, brighter, darker, shift
from utils.images import read_image

FRUIT = ROOT / "data" / "train" / "tomato" / "tomato_00_00.jpg"


@pytest.mark.parametrize("name", [name for name, spoil in CORRUPTIONS.items() if spoil])
@pytest.mark.parametrize("size", [(100, 100), (37, 64), (5, 7)])
def test_changes_a_little_and_always_the_same(name, size):
    image = read_image(FRUIT).resize(size)
    before = np.asarray(image, np.float32)
    spoilt = CORRUPTIONS[name](image)
    assert spoilt.size == image.size and spoilt.mode == "RGB"
    assert (np.asarray(spoilt) == np.asarray(CORRUPTIONS[name](image))).all()
    assert (np.asarray(image) == before).all(), "the original was changed"
    difference = np.abs(np.asarray(spoilt, np.float32) - before).mean()
    assert difference < 64
    if min(size) > 20:
        assert difference > 0.1


def test_brightness_goes_the_way_it_says():
    image = read_image(FRUIT)
    means = [np.asarray(each).mean() for each in (darker(image), image, brighter(image))]
    assert means == sorted(means) and means[0] < means[1] < means[2]


def test_shift_moves_the_picture_and_fills_the_gap_from_its_edge():
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[10, 20] = 255
    pixels[:, 0] = (200, 0, 0)
    moved = np.asarray(shift(Image.fromarray(pixels)))
    assert (moved[12, 23] == 255).all()
    assert (moved[:, :4] == (200, 0, 0)).all()
