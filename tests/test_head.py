"""The last layer: it tells classes apart, is calibrated, survives 8 bits, and is honest about how it was chosen."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score

from utils.cross_validation import out_of_fold
from utils.metrics import cross_entropy, macro_f1
from utils.train.head import ABSENT, Head, attach, fit_discriminants, used


def clouds(classes: int, per_class: int, seed: int = 0, spread: float = 1.0, size: int = 30) -> tuple:
    """Draw Gaussian clouds of different scales, four rows a group; → features, labels, groups."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    centers = np.random.default_rng(99).normal(size=(classes, size))
    rows = centers[labels] + spread * generator.normal(size=(len(labels), size))
    return (rows * np.geomspace(0.5, 2, size) + 7).astype(np.float32), labels, np.arange(len(labels)) // 4


def two_blocks(informative: str, seed: int = 0) -> tuple:
    """Draw features of an inner block (40) and the last one (20), of which one knows the class, or only both do."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), 60)
    centers = np.random.default_rng(99).normal(size=(3, 60))
    centers[:, 40:] *= informative == "last"
    centers[:, :40] *= informative == "inner"
    rows = (centers[labels] + generator.normal(size=(180, 60))).astype(np.float32)
    return rows, labels, np.arange(180) // 2


@pytest.mark.parametrize(("classes", "size", "spread"), [(2, 30, 2), (4, 30, 2), (4, 600, 6)])
def test_new_rows_are_told_apart_and_probabilities_need_no_temperature(classes, size, spread):
    head = Head().fit(*clouds(classes, 40, spread=spread, size=size))
    rows, labels, _ = clouds(classes, 200, seed=1, spread=spread, size=size)
    logits = head.decision_function(rows)
    assert head.coef_.shape == (classes, size) and head.intercept_.shape == (classes,)
    assert macro_f1(labels, head.predict(rows), classes) > 0.75
    np.testing.assert_allclose(head.predict_proba(rows).sum(axis=1), 1)
    losses = [cross_entropy(logits / temperature, labels) for temperature in (1, 0.4, 2.5)]
    assert losses[0] < min(losses[1:])


@pytest.mark.parametrize(("informative", "expected"), [("last", "last block"), ("inner", "all blocks")])
def test_inner_blocks_are_used_where_they_know_the_class_and_left_out_where_they_are_noise(informative, expected):
    head = Head(sizes=[40, 20]).fit(*two_blocks(informative))
    assert head.chosen_[0] == expected
    assert (head.coef_[:, :40] != 0).any() == (expected == "all blocks")
    rows, labels, _ = two_blocks(informative, seed=1)
    assert macro_f1(labels, head.predict(rows), 3) > 0.9
    alone = Head().fit(two_blocks(informative)[0][:, 40:], labels)
    assert (macro_f1(labels, alone.predict(rows[:, 40:]), 3) > 0.9) == (informative == "last")


def test_a_block_counts_the_same_whatever_its_scale_is():
    rows, labels, groups = two_blocks("inner")
    scaled = rows * np.repeat([1000, 0.01], [40, 20]).astype(np.float32)
    logits = [Head([40, 20]).fit(part, labels, groups).decision_function(part) for part in (rows, scaled)]
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-3, atol=1e-3)


def test_it_is_said_whether_the_last_layer_sees_inner_blocks():
    from nets import all_blocks

    network = all_blocks()
    for chosen, inner in (("all blocks", 1.0), ("last", 0.0)):
        head = Head(network.sizes, 3)
        head.classes_, head.intercept_ = np.arange(3), np.zeros(3)
        head.coef_ = np.ones((3, sum(network.sizes)))
        head.coef_[:, : -network.sizes[-1]] = inner
        assert used(attach(network, head)) == chosen


@pytest.mark.parametrize("still", [0, 1e-3])
def test_answers_survive_that_features_are_rounded_to_eight_bits(still):
    """Beside what moves, features that hardly do, as under a plain background: they know the class, but not in INT8."""
    rows, labels, groups = clouds(3, 40, spread=2)
    generator = np.random.default_rng(5)
    hardly = generator.uniform(4, 6, 300) + still * (labels[:, None] + generator.normal(size=(len(labels), 300)))
    rows = np.hstack([rows, hardly]).astype(np.float32)
    head, step = Head().fit(rows, labels, groups), np.ptp(rows) / 255
    same = head.predict(rows) == head.predict(np.round(rows / step) * step)
    assert same.mean() > 0.97


def test_discriminants_are_those_of_scikit_learn():
    rows, labels, _ = clouds(3, 40)
    rows = rows.astype(np.float64)
    found = fit_discriminants(rows, labels, 3)
    covariance = found.basis * found.shrunk(0.3) @ found.basis.T
    within = sum(40 / 120 * np.cov(rows[labels == label].T, bias=True) for label in range(3)) * 120 / 117
    np.testing.assert_allclose(covariance, 0.7 * within + 0.3 * np.trace(within) / 30 * np.eye(30), atol=1e-3)
    weight, bias = found.layer(0.3)
    known = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3).fit(rows, labels)
    assert (known.predict(rows) == (rows @ weight.T + bias).argmax(axis=1)).mean() > 0.99


def test_a_class_without_rows_is_never_the_answer():
    rows, labels, groups = clouds(3, 20)
    some = labels != 1
    head = Head(num_classes=4).fit(rows[some], labels[some], groups[some])
    assert head.intercept_[1] == head.intercept_[3] == ABSENT
    assert set(head.predict(rows)) == {0, 2}
    assert head.predict_proba(rows)[:, [1, 3]].max() == 0


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
    head = Head(sizes=[10, 20], num_classes=3).fit(rows, labels, groups)
    assert np.isfinite(head.decision_function(rows)).all()
    assert case == "all rows equal" or (head.predict(rows) == labels).all()


@pytest.mark.parametrize("seed", range(4))
def test_frames_of_two_objects_a_class_give_a_layer(seed):
    """Trained on one object, discriminants are so sure of another that logits go below those of absent classes."""
    generator = np.random.default_rng(seed)
    groups, labels = np.repeat(np.arange(6), 8), np.repeat(np.arange(3), 16)
    rows = generator.normal(size=(6, 30))[groups] + 1e-3 * generator.normal(size=(48, 30))
    head = Head(num_classes=4).fit(rows, labels, groups)
    assert np.isfinite(head.decision_function(rows)).all() and (head.predict(rows) == labels).all()


def test_cross_validation_inside_keeps_groups_whole():
    """Labels without meaning, each row four times: candidates that had seen a version would be sure of it."""
    generator = np.random.default_rng(0)
    rows = np.repeat(generator.normal(size=(60, 30)), 4, axis=0)
    labels, groups = np.repeat(generator.permutation(np.arange(60) % 2), 4), np.repeat(np.arange(60), 4)
    head = Head([10, 20]).fit(rows, labels, groups)
    assert min(head.candidates_.values()) > 0.6
    assert min(Head([10, 20]).fit(rows, labels).candidates_.values()) < 0.5, "every row is a group by default"
    new = head.decision_function(generator.normal(size=(500, 30)))
    assert cross_entropy(new, generator.integers(2, size=500)) < 0.8


def test_out_of_fold_is_chance_when_labels_mean_nothing():
    """Groups of nearly the same rows with random labels: whoever has seen the group knows the answer."""
    generator = np.random.default_rng(0)
    groups, labels = np.repeat(np.arange(60), 4), np.repeat(generator.permutation(np.arange(60) % 2), 4)
    rows = generator.normal(size=(60, 30))[groups] + 0.01 * generator.normal(size=(240, 30))
    (probabilities,) = out_of_fold(Head(num_classes=2), rows, labels, groups, repeats=1)
    assert 0.3 < (probabilities.argmax(axis=1) == labels).mean() < 0.7


def test_equal_priors_find_the_rare_class_more_often():
    rows, labels, groups = clouds(2, 100, spread=4)
    keep = np.concatenate([np.arange(100), 100 + np.arange(16)])
    new, truth, _ = clouds(2, 200, seed=3, spread=4)
    found = [
        Head(class_weight=weight).fit(rows[keep], labels[keep], groups[keep]).predict(new)[truth == 1].mean()
        for weight in (None, "balanced")
    ]
    assert found[1] > found[0] + 0.05


def test_the_choice_is_the_least_log_loss_and_repeats_itself():
    rows, labels, groups = two_blocks("inner")
    first, second = (Head([40, 20]).fit(rows, labels, groups) for _ in range(2))
    assert first.chosen_ == second.chosen_ and (first.coef_ == second.coef_).all()
    assert first.candidates_[first.chosen_] == min(first.candidates_.values())
    assert {name for name, _ in first.candidates_} == {"all blocks", "last block"}


def test_the_log_loss_of_the_choice_is_what_new_groups_cost():
    rows, labels, groups = clouds(4, 60, spread=3)
    losses, expected = [], []
    for train, test in StratifiedGroupKFold(5).split(rows, labels, groups):
        head = Head(num_classes=4).fit(rows[train], labels[train], groups[train])
        losses.append(cross_entropy(head.decision_function(rows[test]), labels[test]))
        expected.append(head.candidates_[head.chosen_])
    assert abs(np.mean(losses) - np.mean(expected)) < 0.1


def test_it_is_an_estimator_of_scikit_learn():
    rows, labels, groups = two_blocks("inner")
    head = Head(sizes=[40, 20], class_weight="balanced")
    assert head.get_params() == {"sizes": [40, 20], "num_classes": None, "class_weight": "balanced"}
    copied = clone(head.fit(rows, labels, groups))
    assert copied.get_params() == head.get_params() and not hasattr(copied, "coef_")
    scores = cross_val_score(copied, rows, labels, cv=StratifiedGroupKFold(3), groups=groups, scoring="f1_macro")
    assert scores.min() > 0.8
