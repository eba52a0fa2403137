"""Scores and their uncertainty, against other implementations and by simulation."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score

from utils.intervals import (
    macro_f1_difference_interval,
    macro_f1_interval,
    repeated_difference,
    resample_weights,
    share_interval,
    wilson_interval,
)
from utils.metrics import confusion, macro_f1


@pytest.mark.parametrize("absent", [None, 0, 3])
def test_scores_equal_scikit_learn(absent):
    generator = np.random.default_rng(0)
    known = [label for label in range(4) if label != absent]
    for _ in range(20):
        labels, predictions = generator.choice(known, 30), generator.choice(known, 30)
        assert (confusion(labels, predictions, 4) == confusion_matrix(labels, predictions, labels=range(4))).all()
        expected = f1_score(labels, predictions, labels=range(4), average="macro", zero_division=0)
        assert macro_f1(labels, predictions, 4) == pytest.approx(expected, abs=1e-12)


def test_one_pass_over_the_data_counts_an_absent_class_as_zero():
    assert macro_f1(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]), 3) == pytest.approx(2 / 3)


def test_share_of_single_images_has_wilsons_interval_and_alike_ones_a_wider_one():
    hits = np.repeat([True, False], [270, 30])
    single = share_interval(hits, np.arange(300))
    assert single == pytest.approx(wilson_interval(270, 300), abs=0.002)
    low, high = share_interval(hits, np.arange(300) // 10)  # 27 objects all right, 3 all wrong
    assert low < single[0] - 0.05 and high > single[1] + 0.02
    assert share_interval(np.full(80, True), np.arange(80) // 8) == pytest.approx(wilson_interval(10, 10))
    assert share_interval(hits, np.zeros(300))[0] < 0.3, "one object proves little"


def test_nothing_seen_says_nothing():
    assert wilson_interval(0, 0) == (0, 1)


def test_interval_covers_the_truth():
    """Three classes told apart right in 80 % of cases, seen through samples of 60 images."""
    generator = np.random.default_rng(0)

    def sample(size: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat([0, 1, 2], size)
        wrong = generator.random(3 * size) > 0.8
        return labels, np.where(wrong, (labels + generator.integers(1, 3, 3 * size)) % 3, labels)

    truth = macro_f1(*sample(100_000), 3)
    intervals = [macro_f1_interval(*sample(20), 3, np.arange(60)) for _ in range(60)]
    assert np.mean([low <= truth <= high for low, high in intervals]) >= 0.85
    assert np.mean([high - low for low, high in intervals]) < 0.3


def test_perfect_score_is_not_certainty_and_fewer_groups_say_less():
    labels = np.repeat([0, 1, 2], 20)
    widths = []
    for images_per_group in (1, 5, 20):
        low, high = macro_f1_interval(labels, labels, 3, np.arange(60) // images_per_group)
        assert low < 1 == high
        widths.append(high - low)
    assert widths == sorted(widths)
    assert widths[0] < 0.2 < widths[2]


def test_interval_holds_the_score_even_when_all_is_wrong():
    labels = np.repeat([0, 1], 10)
    low, high = macro_f1_interval(labels, 1 - labels, 2, np.arange(20))
    assert low == 0 < high < 0.5


def test_images_of_one_group_are_drawn_together():
    labels, groups = np.zeros(40, int), np.arange(40) // 10
    drawn = resample_weights(labels, groups, draws=200)
    assert (drawn.sum(axis=1) == 40).all()
    assert (drawn.reshape(200, 4, 10).sum(axis=2) % 10 == 0).all()


def test_paired_difference_sees_what_changed_and_nothing_else():
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 40)
    noisy = np.where(generator.random(120) < 0.3, (labels + 1) % 3, labels)
    groups = np.arange(120)
    low, high = macro_f1_difference_interval(labels, noisy, noisy, 3, groups)
    assert -0.05 < low < 0 < high < 0.05  # nothing changed, but in 120 images alone
    low, high = macro_f1_difference_interval(labels, noisy, labels, 3, groups)
    assert 0.1 < low < high < 0.5
    assert macro_f1_difference_interval(labels, labels, noisy, 3, groups) == pytest.approx((-high, -low), abs=0.05)


def test_against_itself_there_is_no_difference():
    generator = np.random.default_rng(0)
    probabilities, labels = generator.random((2, 60, 3)), np.arange(60) % 3
    difference, low, high = repeated_difference(probabilities, probabilities, labels, np.arange(60))
    assert low < difference == 0 < high, "what did not change here may change elsewhere"
