"""Paired statistics, against independent implementations on random tables, and by simulation."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import beta, chi2, poisson

from utils.compare_models.paired import recall_differences
from utils.intervals import (
    flip_effects,
    macro_f1_difference_interval,
    mcnemar_p,
    paired_interval,
    rare_sum_interval,
    resample_weights,
    wilson_interval,
)
from utils.metrics import confusion, expected_calibration_error, macro_f1, weighted_macro_f1


def random_answers(generator: np.random.Generator, size: int = 60, classes: int = 4) -> tuple[np.ndarray, ...]:
    labels, first = generator.integers(0, classes, (2, size))
    first = np.where(generator.random(size) < 0.7, labels, first)
    second = np.where(generator.random(size) < 0.2, generator.integers(0, classes, size), first)
    return labels, first, second


def test_mcnemar_equals_a_sum_of_fractions_on_random_tables():
    generator = np.random.default_rng(0)
    for fixed, broken in generator.integers(0, 40, (200, 2)):
        total, small = int(fixed + broken), int(min(fixed, broken))
        tail = Fraction(sum(math.comb(total, count) for count in range(small + 1)), 2**total)
        assert mcnemar_p(int(fixed), int(broken)) == pytest.approx(float(min(Fraction(1), 2 * tail)), abs=1e-9)


def test_wilson_interval_solves_the_score_equation_on_random_tables():
    generator = np.random.default_rng(0)
    for total in generator.integers(1, 400, 100):
        hits = int(generator.integers(0, total + 1))
        for bound in wilson_interval(hits, int(total)):
            deviation = (hits - total * bound) ** 2 - chi2.ppf(0.95, 1) * total * bound * (1 - bound)
            assert deviation / total == pytest.approx(0, abs=1e-9)


def test_interval_of_equal_effects_is_the_exact_one_of_a_poisson_count():
    for count in range(15):
        low, high = rare_sum_interval(np.full(count, 0.5), 0.5)
        assert poisson.cdf(count, 2 * high) == pytest.approx(0.025, abs=1e-9)  # Garwood: as many or fewer are unlikely
        assert poisson.sf(count - 1, 2 * low) == pytest.approx(0.025 if count else 1, abs=1e-9)


def test_interval_of_unequal_effects_equals_fay_and_feuers_formula():
    generator = np.random.default_rng(0)
    for _ in range(100):
        effects = generator.random(generator.integers(1, 20))
        total, variance, largest = effects.sum(), (effects**2).sum(), effects.max()
        lower = variance / (2 * total) * chi2.ppf(0.025, 2 * total**2 / variance)
        more, wider = total + largest, variance + largest**2
        upper = wider / (2 * more) * chi2.ppf(0.975, 2 * more**2 / wider)
        assert rare_sum_interval(effects, largest) == pytest.approx((lower, upper), abs=1e-9)


def test_no_flip_at_all_is_no_certainty_and_agrees_with_the_rule_of_three():
    labels = np.repeat([0, 1, 2], 100)
    low, high = macro_f1_difference_interval(labels, labels, labels, 3, np.arange(300))
    clopper_pearson = beta.ppf(0.975, 1, 300)  # of the share of flips, after none in 300
    assert low == -high and -high == pytest.approx(-clopper_pearson, rel=0.02)
    fewer = macro_f1_difference_interval(labels[::10], labels[::10], labels[::10], 3, np.arange(30))
    assert fewer[0] < 5 * low


def test_effect_of_a_flip_is_what_scoring_again_gives():
    generator = np.random.default_rng(0)
    for _ in range(20):
        labels, first, second = random_answers(generator)
        effects, largest = flip_effects(labels, first, second, 4)
        for image, effect in enumerate(effects):
            changed = first.copy()
            changed[image] = second[image]
            assert effect == pytest.approx(macro_f1(labels, changed, 4) - macro_f1(labels, first, 4), abs=1e-9)
        spoilt = []
        for image in np.flatnonzero(first == labels):
            for other in set(range(4)) - {first[image]}:
                changed = first.copy()
                changed[image] = other
                spoilt.append(macro_f1(labels, first, 4) - macro_f1(labels, changed, 4))
        assert largest == pytest.approx(max(spoilt), abs=1e-9)


def test_losses_and_gains_mirror_each_other_and_groups_count_once():
    labels, first, second = random_answers(np.random.default_rng(1), size=200)
    changes = (second == labels).astype(float) - (first == labels)
    low, high = paired_interval(changes, 1, np.arange(200))
    assert paired_interval(-changes, 1, np.arange(200)) == pytest.approx((-high, -low), abs=1e-9)
    assert low < changes.sum() < high
    together = paired_interval(-np.ones(8), 1, np.zeros(8, int))
    apart = paired_interval(-np.ones(8), 1, np.arange(8))
    assert together[0] < apart[0], "eight images of one object are not eight events"


def test_recall_differences_are_those_of_the_confusion_tables():
    labels, first, second = random_answers(np.random.default_rng(2), size=120)
    rows = recall_differences(labels, first, second, 5, np.arange(120))
    recalls = [np.diag(confusion(labels, each, 4)) / np.bincount(labels) for each in (first, second)]
    assert rows[:4, 0] == pytest.approx(recalls[1] - recalls[0], abs=1e-9)
    assert (rows[:4, 1] <= rows[:4, 0]).all() and (rows[:4, 0] <= rows[:4, 2]).all()
    assert list(rows[4]) == [0, -1, 1], "nothing is known of a class without images"


def flips(generator: np.random.Generator, counts: tuple[int, ...], size: int, noise: float) -> tuple[np.ndarray, ...]:
    """Draw a classifier and its noisy twin: margins and noise alike within a group of `size` images."""
    labels = np.repeat(np.arange(3), np.array(counts) * size)
    groups = np.arange(len(labels)) // size

    def alike() -> np.ndarray:
        return (generator.normal(size=len(labels)) + generator.normal(size=len(labels))[groups]) / np.sqrt(2)

    margin, shift = 2 + alike(), noise * (alike() - 0.5)
    rival = (labels + generator.integers(1, 3, len(labels))) % 3
    return labels, np.where(margin > 0, labels, rival), np.where(margin + shift > 0, labels, rival), groups


def test_interval_seldom_excludes_a_true_loss_where_the_bootstrap_often_does():
    generator = np.random.default_rng(0)
    labels, first, second, _ = flips(generator, (20_000, 20_000, 8_000), 7, 0.05)
    truth = macro_f1(labels, second, 3) - macro_f1(labels, first, 3)
    assert truth < 0
    missed = {"ours": 0, "bootstrap": 0}
    for _ in range(25):
        labels, first, second, groups = flips(generator, (18, 18, 7), 7, 0.05)
        missed["ours"] += macro_f1_difference_interval(labels, first, second, 3, groups)[0] > truth
        weights = resample_weights(labels, groups, draws=200)
        scores = [weighted_macro_f1(labels, each, 3, weights) for each in (first, second)]
        missed["bootstrap"] += np.percentile(scores[1] - scores[0], 2.5) > truth
    assert missed["ours"] <= 1 and missed["bootstrap"] >= 7


def test_calibration_error_equals_a_plain_loop():
    generator = np.random.default_rng(0)
    for total, bins in [(7, 10), (100, 10), (103, 15)]:
        probabilities = generator.dirichlet([1, 1, 1], total)
        labels = generator.integers(0, 3, total)
        order = np.argsort(probabilities.max(axis=1))
        error = 0.0
        for number in range(bins):
            rows = [image for rank, image in enumerate(order) if rank * bins // total == number]
            if rows:
                right = (probabilities[rows].argmax(axis=1) == labels[rows]).mean()
                error += len(rows) / total * abs(right - probabilities[rows].max(axis=1).mean())
        assert expected_calibration_error(probabilities, labels, bins) == pytest.approx(error, abs=1e-9)


def test_calibration_error_is_small_where_confidence_is_kept():
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet([1, 1, 1], 20_000)
    labels = (probabilities.cumsum(axis=1) < generator.random((20_000, 1))).sum(axis=1)
    assert expected_calibration_error(probabilities, labels) < 0.02
    assert expected_calibration_error(np.eye(3)[probabilities.argmax(axis=1)], labels) > 0.3
