"""Probabilities, measured against cases whose truth is known."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from utils.cross_validation import OutOfFold
from utils.metrics import cross_entropy, expected_calibration_error, reliability
from utils.train.calibration import (
    abstain_threshold,
    calibrate,
    coverage_accuracy,
    fit_temperature,
    tempered_out_of_fold,
)


def answers(total: int, temperature: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the truth, and then `temperature` times as large."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (total, 3))
    labels = np.array([generator.choice(3, p=row) for row in softmax(logits, axis=1)])
    return temperature * logits, labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 5.0])
def test_the_temperature_is_found_and_mends_the_error(temperature):
    logits, labels = answers(20_000, temperature)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.05)
    assert expected_calibration_error(softmax(logits / found, axis=1), labels) < 0.015
    assert cross_entropy(logits / found, labels) <= cross_entropy(logits, labels) + 1e-6
    if temperature != 1:
        assert expected_calibration_error(softmax(logits, axis=1), labels) > 0.05


@pytest.mark.parametrize("total", [40, 400])
def test_all_right_does_not_make_it_infinitely_sure(total):
    labels = np.arange(total) % 3
    logits = 50 * np.eye(3)[labels]
    sure = softmax(logits / fit_temperature(logits, labels), axis=1).max(axis=1)
    assert np.allclose(sure, (total + 1) / (total + 2), atol=1e-4)


def test_a_fold_has_no_say_in_its_own_temperature():
    logits, labels = answers(400, 3.0)
    folds = np.arange(400) % 4
    before = tempered_out_of_fold(logits, labels, folds)
    changed = np.where(folds == 2, (labels + 1) % 3, labels)
    after = tempered_out_of_fold(logits, changed, folds)
    assert (before[folds == 2] == after[folds == 2]).all()
    assert (before[folds != 2] != after[folds != 2]).any()


def test_error_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    labels = np.array([0, 1, 1, 1])
    table = reliability(probabilities, labels, bins=2)
    assert table["images"].tolist() == [2, 2] and table["accuracy"].tolist() == [1.0, 0.5]
    assert expected_calibration_error(probabilities, labels, bins=2) == pytest.approx((0.4 + 0.4) / 2)


def test_abstaining_gives_the_accuracy_asked_for():
    logits, labels = answers(2000)
    probabilities = softmax(logits, axis=1)
    threshold = abstain_threshold(probabilities, labels, 0.95)
    kept = probabilities.max(axis=1) >= threshold
    assert 0.3 < kept.mean() < 0.9
    assert (probabilities.argmax(1) == labels)[kept].mean() >= 0.95
    table = coverage_accuracy(probabilities, labels)
    assert table["coverage"].iloc[-1] == 1 and table["threshold"].is_monotonic_decreasing
    assert abstain_threshold(probabilities, labels, 0.1) == 0, "everything may be answered"


@pytest.mark.parametrize(("sure", "expected"), [(5, 0.0), (15, 0.9)])
def test_a_threshold_that_answers_less_than_a_tenth_is_none(sure, expected):
    """Of 100 images, a few are sure and right, and the others are right half of the time."""
    probabilities = np.repeat([[0.9, 0.1], [0.6, 0.4]], [sure, 100 - sure], axis=0)
    labels = np.where(np.arange(100) < sure, 0, np.arange(100) % 2)
    assert abstain_threshold(probabilities, labels, 0.95) == expected
    assert abstain_threshold(probabilities, labels, 1.1) == 0, "no threshold is enough"


def test_temperature_and_threshold_that_are_saved_keep_their_promise_on_new_images():
    logits, labels = answers(8000, 3.0)
    index = pd.DataFrame({"split": np.where(np.arange(8000) < 6000, "train", "test")})
    misleading = np.where(index["split"] == "test", (labels + 1) % 3, labels)  # the test part has no say
    oof = OutOfFold(logits[None], misleading, [], trained_on=0.7)
    temperature, threshold = calibrate(oof, index, np.arange(8000) % 5, accuracy=0.9)
    assert temperature == pytest.approx(3, rel=0.1)
    logits, labels = answers(8000, 3.0, seed=10)
    probabilities = softmax(logits / temperature, axis=1)
    answered = probabilities.max(axis=1) >= threshold
    assert 0.3 < answered.mean() < 0.9
    assert (probabilities.argmax(axis=1) == labels)[answered].mean() == pytest.approx(0.9, abs=0.03)
