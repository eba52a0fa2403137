"""Figures show what they are given, whatever characters the names of classes have."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from utils import plots
from utils.compare_models.figures import flips
from utils.compare_models.paired import measure_shift

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
