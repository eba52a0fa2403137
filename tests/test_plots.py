"""Figures show what they are given, whatever characters the names of classes have."""

from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from utils import plots
from utils.compare_models.figures import flips
from utils.compare_models.paired import measure_shift
from utils.eda.probes import draw_classes

NAMES = ["$5 and $10", "a$\\frac$", "b$_2$", r"\$"]


@pytest.fixture(autouse=True)
def style():
    with plt.rc_context():
        plots.use_style()
        yield
        plt.close("all")


def drawn_texts(ax) -> list[str]:
    """Draw a figure; → its texts, having made sure that none is taken for mathematics."""
    ax.figure.canvas.draw()
    texts = [text for text in ax.findobj(plt.Text) if text.get_text()]
    assert not any(text.get_parse_math() for text in texts)
    return [text.get_text() for text in texts]


def test_dollars_in_names_of_classes_are_no_mathematics():
    counts = pd.DataFrame(np.eye(4), NAMES, NAMES)
    images = [np.zeros((4, 4, 3), np.uint8)] * 4
    for draw in (
        lambda ax: plots.bars(pd.Series([1, 2, 3, 4], NAMES), ax=ax),
        lambda ax: plots.table(counts, ax=ax),
        lambda ax: plots.image_grid(images, NAMES, 2, ax=ax),
        lambda ax: plots.contact_sheet([np.array(images)] * 4, NAMES, 2, ax=ax),
    ):
        _, ax = plt.subplots()
        assert set(NAMES) <= set(drawn_texts(draw(ax)))


def test_ticks_of_logarithmic_axes_are_plain_numbers():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(50, 3))
    shift = measure_shift(logits, logits + generator.normal(0, 0.01, size=(50, 3)), np.arange(50))
    texts = drawn_texts(flips(shift))
    assert not [text for text in texts if "$" in text] and {"0.01", "1"} <= set(texts)


def overlapping(texts: list) -> list[tuple[str, str]]:
    """List the pairs of texts that cover each other."""
    texts[0].figure.canvas.draw()
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    return [(one, two) for (one, box), (two, other) in combinations(boxes, 2) if box.overlaps(other)]


def test_long_titles_of_pictures_stay_legible_and_beside_each_other():
    titles = ["MT_Blowhole: “nematode, nematode worm, roundworm” 95%"] * 12
    _, ax = plt.subplots(figsize=(9, 4))
    plots.image_grid([np.zeros((4, 4, 3), np.uint8)] * 12, titles, 6, ax=ax)
    assert min(text.get_fontsize() for text in ax.texts) >= 6 and not overlapping(ax.texts)


def test_names_of_classes_that_lie_upon_each_other_can_be_read():
    names = pd.Series(["MT_Blowhole", "MT_Break", "MT_Crack", "MT_Fray", "MT_Free", "MT_Uneven"] * 30)
    _, ax = plt.subplots(figsize=(6.5, 5.5))
    draw_classes(np.random.default_rng(0).normal(size=(180, 4)), names, ax=ax)
    assert len(ax.texts) == 6 and not overlapping(ax.texts)
