"""The risk of a flip, from margins and noise: it says yes where counting cannot, and no to what is planted."""

import numpy as np
import pandas as pd
import pytest

from utils.compare_models.paired import compare_predictions, estimate_loss, flip_ratios, measure_shift
from utils.compare_models.verdict import Rule, decide
from utils.metrics import macro_f1

CLASSES = ["apple", "cherry", "tomato"]
COUNTS = (127, 127, 50)
FILES = pd.DataFrame({"bytes": [100, 40], "latency_ms": [1, 0.5]}, index=["onnx", "int8"])


def twins(generator: np.random.Generator, counts: tuple[int, ...] = COUNTS, noise: float = 0.03) -> tuple:
    """Draw labels, a classifier's logits, and those of a twin that is a little off."""
    labels = np.repeat(np.arange(3), counts)
    logits = 3 * np.eye(3)[labels] + generator.normal(size=(len(labels), 3))
    return labels, logits, logits + noise * generator.normal(size=logits.shape)


def compare(labels: np.ndarray, reference: np.ndarray, logits: np.ndarray) -> dict:
    index = pd.DataFrame({"class": np.array(CLASSES)[labels], "group": np.arange(len(labels))})
    return compare_predictions(index, reference, logits, CLASSES)


def verdict(found: dict) -> dict:
    rule = Rule("onnx", "int8", ["tomato"], margin=0.01, minority_margin=0.1)
    return decide(rule, FILES, (0.5, 0.6), {"out of fold": found})


def test_prediction_flips_as_soon_as_the_noise_is_so_much_larger_and_to_the_class_that_is_named():
    _, reference, logits = twins(np.random.default_rng(0), noise=0.5)
    ratios, nearest_classes = flip_ratios(measure_shift(reference, logits, np.arange(304)))
    flipped = reference.argmax(axis=1) != logits.argmax(axis=1)
    assert flipped.any() and (ratios[flipped] > 1).all() and (ratios[~flipped] <= 1).all()
    assert (nearest_classes[flipped] == logits.argmax(axis=1)[flipped]).all()
    assert (nearest_classes != reference.argmax(axis=1)).all()
    near = (ratios > 0) & ~flipped
    for factor, flips in ((1.001, True), (0.999, False)):
        more = reference + (logits - reference) * (factor / np.maximum(ratios, 1e-9))[:, None]
        expected = nearest_classes if flips else reference.argmax(axis=1)
        assert (more.argmax(axis=1) == expected)[near].all()


def test_the_loss_is_excluded_that_counting_304_images_cannot_exclude_and_the_promise_is_kept():
    generator = np.random.default_rng(0)
    labels, reference, logits = twins(generator, (60_000, 60_000, 24_000))
    logits -= 0.03 * np.eye(3)[labels]  # against what is right, or gains would make up for losses
    loss = macro_f1(labels, reference.argmax(axis=1), 3) - macro_f1(labels, logits.argmax(axis=1), 3)
    assert loss > 0.001
    broken, shipped, counted = 0, 0, 0
    for _ in range(20):
        labels, reference, logits = twins(generator)
        logits -= 0.03 * np.eye(3)[labels]
        found = compare(labels, reference, logits)
        broken += found["macro_f1_loss"]["bound"] < loss
        counted += found["macro_f1_loss"]["counted"] <= 0.01
        shipped += verdict(found)["outcome"] == "ship"
    assert broken <= 1
    assert shipped >= 15 and counted == 0


def test_shipping_on_an_estimate_says_what_it_rests_on():
    found = compare(*twins(np.random.default_rng(3)))
    decision = verdict(found)
    assert decision["outcome"] == "ship" and decision["ship"] == "int8"
    assert decision["turning_margin"] < 0.01 < found["macro_f1_loss"]["counted"]
    assert "Only a fault too rare to show among these images could cost more" in decision["reason"]
    assert f"{np.ceil(found['macro_f1_loss']['counted'] * 1e4) / 1e4:.4g}" in decision["reason"]


FAULTS = {
    "three images in a hundred": lambda labels, generator: generator.random(len(labels)) < 0.03,
    "the minority alone": lambda labels, generator: (labels == 2) & (generator.random(len(labels)) < 0.2),
}


@pytest.mark.parametrize("name", FAULTS)
def test_rare_fault_is_refused_on_the_strength_of_what_it_did_elsewhere(name):
    """The fault is large enough to flip any image, but met images of large margins: few flips are there to count."""
    generator = np.random.default_rng(0)
    shipped = 0
    for _ in range(20):
        labels, reference, logits = twins(generator)
        hit = FAULTS[name](labels, generator)
        logits[hit] += generator.normal(size=(hit.sum(), 3)) * 4
        shipped += verdict(compare(labels, reference, logits))["outcome"] == "ship"
    assert shipped == 0


def test_bias_against_the_minority_is_refused_and_called_a_loss():
    labels, reference, logits = twins(np.random.default_rng(0))
    logits[:, 2] -= 2
    decision = verdict(compare(labels, reference, logits))
    assert decision["outcome"] == "do not ship" and decision["ship"] == "onnx"
    assert "of tomato's recall out of fold" in decision["reason"]


def test_too_few_groups_or_a_model_beside_itself_leave_it_to_counting():
    labels, reference, logits = twins(np.random.default_rng(0))
    for_few = measure_shift(reference, logits, np.arange(304) % 39)
    assert estimate_loss(for_few, np.full(304, 1 / 304), 1 / 304) == np.inf
    for found in (compare(labels, reference, reference), compare(labels[::12], reference[::12], logits[::12])):
        assert found["macro_f1_loss"]["bound"] == found["macro_f1_loss"]["counted"]


def test_no_loss_that_was_seen_is_excluded():
    generator = np.random.default_rng(0)
    for _ in range(10):
        labels, reference, logits = twins(generator, noise=0.4)
        found = compare(labels, reference, logits)
        assert found["macro_f1_loss"]["bound"] >= -found["macro_f1_delta"]
        assert found["macro_f1_loss"]["bound"] <= found["macro_f1_loss"]["counted"]
