"""The layer in closed form: right, calibrated, safe in 8 bits, and honest about how it was chosen."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from utils.train.discriminant import ABSENT, fit_discriminants, fit_layer

from utils.cross_validation import grouped_folds
from utils.metrics import cross_entropy, macro_f1


def clouds(classes: int, per_class: int, seed: int = 0, spread: float = 1.0, size: int = 30) -> tuple:
    """Gaussian clouds of different scales; four rows a group."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    centers = np.random.default_rng(99).normal(size=(classes, size))
    rows = centers[labels] + spread * generator.normal(size=(len(labels), size))
    return (rows * np.geomspace(0.5, 2, size) + 7).astype(np.float32), labels, np.arange(len(labels)) // 4


def logits(layer: tuple, rows: np.ndarray) -> np.ndarray:
    return rows @ layer[0].T + layer[1]


@pytest.mark.parametrize(("classes", "size", "spread"), [(2, 30, 2), (4, 30, 2), (4, 600, 5)])
def test_new_rows_are_told_apart_and_probabilities_need_no_temperature(classes, size, spread):
    rows, labels, groups = clouds(classes, 40, spread=spread, size=size)
    layer = fit_layer(rows, labels, groups, classes).layer
    rows, labels, _ = clouds(classes, 200, seed=1, spread=spread, size=size)
    answers = logits(layer, rows)
    assert layer[0].shape == (classes, size) and layer[1].shape == (classes,)
    assert macro_f1(labels, answers.argmax(1), classes) > 0.75
    losses = [cross_entropy(answers / temperature, labels) for temperature in (1, 0.5, 2)]
    assert losses[0] < min(losses[1:])


@pytest.mark.parametrize("still", [0, 1e-3])
def test_answers_survive_that_features_are_rounded_to_eight_bits(still):
    """Beside what moves, features that hardly do, as under a plain background: they know the class, but not in INT8."""
    rows, labels, groups = clouds(3, 40, spread=2)
    generator = np.random.default_rng(5)
    hardly = generator.uniform(4, 6, 300) + still * (labels[:, None] + generator.normal(size=(len(labels), 300)))
    rows = np.hstack([rows, hardly]).astype(np.float32)
    layer, step = fit_layer(rows, labels, groups, 3).layer, np.ptp(rows) / 255
    same = logits(layer, rows).argmax(1) == logits(layer, np.round(rows / step) * step).argmax(1)
    assert same.mean() > 0.97


def test_discriminants_are_those_of_scikit_learn():
    rows, labels, _ = clouds(3, 40)
    rows = rows.astype(np.float64)
    found = fit_discriminants(rows, labels, 3)
    covariance = found.basis * found.shrunk(0.3) @ found.basis.T
    within = sum(40 / 120 * np.cov(rows[labels == label].T, bias=True) for label in range(3)) * 120 / 117
    np.testing.assert_allclose(covariance, 0.7 * within + 0.3 * np.trace(within) / 30 * np.eye(30), atol=1e-3)
    known = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3)
    same = known.fit(rows, labels).predict(rows) == logits(found.layer(0.3), rows).argmax(1)
    assert same.mean() > 0.99


def test_a_class_without_rows_is_never_the_answer():
    rows, labels, groups = clouds(3, 20)
    some = labels != 1
    layer = fit_layer(rows[some], labels[some], groups[some], 4).layer
    assert layer[1][1] == layer[1][3] == ABSENT
    assert set(logits(layer, rows).argmax(1)) == {0, 2}


@pytest.mark.parametrize("case", ["one class", "one group", "one row a class", "one group a class", "all rows equal"])
def test_too_little_to_compare_candidates_still_gives_a_layer(case):
    rows, labels, groups = clouds(3, 8, spread=0.1)
    if case == "one class":
        rows, labels, groups = rows[:8], labels[:8], groups[:8]
    if case == "one group":
        groups = np.zeros(24, dtype=int)
    if case == "one group a class":
        groups = labels
    if case == "one row a class":
        rows, labels, groups = rows[::8], labels[::8], np.arange(3)
    if case == "all rows equal":
        rows = np.ones_like(rows)
    answers = logits(fit_layer(rows, labels, groups, 3).layer, rows)
    assert np.isfinite(answers).all()
    assert case == "all rows equal" or (answers.argmax(1) == labels).all()


@pytest.mark.parametrize("seed", range(4))
def test_frames_of_two_objects_a_class_give_a_layer(seed):
    """Trained on one object, discriminants are so sure of another that logits go below those of absent classes."""
    generator = np.random.default_rng(seed)
    groups, labels = np.repeat(np.arange(6), 8), np.repeat(np.arange(3), 16)
    rows = generator.normal(size=(6, 30))[groups] + 1e-3 * generator.normal(size=(48, 30))
    answers = logits(fit_layer(rows, labels, groups, 4).layer, rows)
    assert np.isfinite(answers).all() and (answers.argmax(1) == labels).all()


def test_versions_of_an_image_do_not_make_it_sure():
    """Labels without meaning, each row four times: candidates that had seen a version would be sure of it."""
    generator = np.random.default_rng(0)
    rows = np.repeat(generator.normal(size=(60, 30)), 4, axis=0)
    labels, groups = np.repeat(generator.permutation(np.arange(60) % 2), 4), np.repeat(np.arange(60), 4)
    fit = fit_layer(rows, labels, groups, 2)
    assert min(fit.losses.values()) > 0.6
    new = logits(fit.layer, generator.normal(size=(500, 30)))
    assert cross_entropy(new, generator.integers(2, size=500)) < 0.8


def test_equal_priors_find_the_rare_class_more_often():
    rows, labels, groups = clouds(2, 100, spread=4)
    keep = np.concatenate([np.arange(100), 100 + np.arange(16)])
    new, truth, _ = clouds(2, 200, seed=3, spread=4)
    found = [
        logits(fit_layer(rows[keep], labels[keep], groups[keep], 2, weight).layer, new)[truth == 1].argmax(1).mean()
        for weight in (None, "balanced")
    ]
    assert found[1] > found[0] + 0.05


def test_the_choice_is_reported_and_repeats_itself():
    rows, labels, groups = clouds(4, 40, spread=3)
    first, second = (fit_layer(rows, labels, groups, 4) for _ in range(2))
    assert first.factors == second.factors and (first.layer[0] == second.layer[0]).all()
    assert set(first.factors) <= set(first.losses) and "mean of both" in first.losses
    best = min(first.losses, key=first.losses.get)
    assert best in first.factors or (best == "mean of both" and len(first.factors) == 2)


def test_the_reported_loss_is_what_new_groups_cost():
    rows, labels, groups = clouds(4, 60, spread=3)
    losses, reported = [], []
    for train, test in grouped_folds(labels, groups):
        fit = fit_layer(rows[train], labels[train], groups[train], 4)
        losses.append(cross_entropy(logits(fit.layer, rows[test]), labels[test]))
        reported.append(min(fit.losses.values()))
    assert abs(np.mean(losses) - np.mean(reported)) < 0.1
