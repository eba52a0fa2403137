"""A linear layer for features as they are: discriminant analysis, logistic regression, or the mean of both."""

from collections import defaultdict
from typing import NamedTuple

import numpy as np
from numpy.linalg import eigh  # with scipy's, heads fitted in two threads take as long as in one
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from utils.config import SEED
from utils.cross_validation import FOLDS
from utils.metrics import cross_entropy
from utils.train.confidence import fit_temperature

AXES = 256  # principal ones: more gain little, and cost grows with the square
SHRINKAGES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
PENALTY = 2.0  # scikit-learn's C, for rows of a mean squared length of 10
COMPARED = 2000  # rows, at most, to find the axes and to compare candidates on
PREDICTED = 1000  # of them, at least, are predicted
STEPS = 255  # of 8 bits over the range of all features
ABSENT = -1000.0  # logit of a class without rows
Layer = tuple[np.ndarray, np.ndarray]  # weight (C, D) and bias (C,)


class Discriminants(NamedTuple):
    """What discriminant analysis knows of rows (M, K): a mean and a count per class, and the covariance they share.

    Within a class, rows vary independently along the columns of `basis` (K, K), by `variances` (K,). `means` (C, K) are
    0 for a class without rows.
    """

    means: np.ndarray
    counts: np.ndarray
    basis: np.ndarray
    variances: np.ndarray

    def shrunk(self, shrinkage: float) -> np.ndarray:
        """Move the variances (K,) towards their mean (Friedman 1989)."""
        return (1 - shrinkage) * self.variances + shrinkage * self.variances.mean()

    def layer(self, shrinkage: float, class_weight: str | None = None) -> Layer:
        """Solve for the linear layer (Hastie et al. 2009, section 4.3); "balanced" gives classes equal priors."""
        weight = self.means @ (self.basis / self.shrunk(shrinkage)) @ self.basis.T
        priors = np.maximum(self.counts, 1) if class_weight is None else np.ones(len(self.counts))
        bias = np.log(priors / priors.sum()) - (weight * self.means).sum(axis=1) / 2
        return weight, np.where(self.counts > 0, bias, ABSENT)


class Fit(NamedTuple):
    """The layer, the candidates it is the sum of with their factors, and the log-loss of all in cross-validation."""

    layer: Layer
    factors: dict[str, float]
    losses: dict[str, float]


def fit_discriminants(rows: np.ndarray, labels: np.ndarray, num_classes: int) -> Discriminants:
    """Estimate class means and covariance of rows (M, K); one decomposition, O(MK² + K³), serves all shrinkages.

    No variance is smaller than what rounding to 8 bits adds to it.
    """
    counts = np.bincount(labels, minlength=num_classes)
    means = np.eye(num_classes)[labels].T @ rows / np.maximum(counts, 1)[:, None]
    deviations = rows - means[labels]
    variances, basis = eigh(deviations.T @ deviations / max(len(rows) - np.count_nonzero(counts), 1))
    rounding = ((np.ptp(rows) or 1) / STEPS) ** 2 / 12
    return Discriminants(means, counts, basis, variances.clip(0) + rounding)


def fit_logistic(rows: np.ndarray, labels: np.ndarray, num_classes: int, class_weight: str | None = None) -> Layer:
    """Fit multinomial logistic regression to rows (M, K) of two classes or more, in float32, which halves its time."""
    unit = np.sqrt(10 / (np.square(rows).sum(axis=1).mean() or 1))  # the penalty then weighs the same whatever K is
    fitted = LogisticRegression(C=PENALTY, class_weight=class_weight, tol=1e-3, max_iter=1000)
    fitted.fit((rows * unit).astype(np.float32), labels)
    weight, bias = fitted.coef_ * unit, fitted.intercept_
    if len(weight) == 1:  # two classes: scikit-learn keeps the difference only
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    layer = np.zeros((num_classes, rows.shape[1])), np.full(num_classes, ABSENT)
    layer[0][fitted.classes_], layer[1][fitted.classes_] = weight, bias
    return layer


def principal_axes(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the mean (D,) of rows (M, D) and their first 256 principal axes (K, D), or as many as there are.

    From the smaller of the two products of the centered rows, which takes a tenth of the time of decomposing them.
    """
    mean = rows.mean(axis=0, dtype=np.float64)
    centered = rows - mean
    tall = len(rows) > rows.shape[1]
    squares, vectors = eigh(centered.T @ centered if tall else centered @ centered.T)
    kept = np.flatnonzero(squares > squares[-1] * 1e-10)[-AXES:] if squares[-1] > 0 else np.array([len(squares) - 1])
    if tall:
        return mean, vectors[:, kept].T
    return mean, (vectors[:, kept] / np.sqrt(squares[kept].clip(np.finfo(float).tiny))).T @ centered


@threadpool_limits.wrap(limits=1)  # on so few rows, threads mostly wait for each other
def fit_layer(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, num_classes: int, class_weight: str | None = None
) -> Fit:
    """Fit a linear layer to features (M, D), the first step of LP-FT (Kumar et al. 2022).

    Discriminant analysis with each shrinkage, logistic regression, and the mean of the best of both compete: the least
    log-loss in cross-validation by group decides, after temperature, by which the layer is divided. A class without
    rows is never the answer. Features are centered, not standardized: those that hardly vary, as under a plain
    background, would get weights that turn INT8's rounding into the answer.
    """
    some = np.sort(np.random.default_rng(SEED).permutation(len(features))[:COMPARED])
    mean, axes = principal_axes(features[some])
    rows = features @ axes.T.astype(features.dtype) - mean @ axes.T  # in 64 bits the copies would fill the memory
    factors, losses = _compare(rows[some], labels[some], groups[some], num_classes, class_weight)
    layers = _fit_candidates(rows, labels, num_classes, class_weight, logistic="logistic" in factors)
    weight, bias = (sum(factor * layers[name][part] for name, factor in factors.items()) for part in (0, 1))
    present = np.unique(labels)
    weight, bias = weight - weight[present].mean(axis=0), bias - bias[present].mean()  # same answers, a smaller range
    weight = weight @ axes
    bias -= weight @ mean
    bias[np.setdiff1d(np.arange(num_classes), present)] = ABSENT
    return Fit((weight, bias), factors, losses)


def _fit_candidates(
    rows: np.ndarray, labels: np.ndarray, num_classes: int, class_weight: str | None, logistic: bool = True
) -> dict[str, Layer]:
    discriminants = fit_discriminants(rows, labels, num_classes)
    layers = {f"discriminant, shrinkage {each}": discriminants.layer(each, class_weight) for each in SHRINKAGES}
    if logistic:
        layers["logistic"] = fit_logistic(rows, labels, num_classes, class_weight)
    return layers


def _compare(
    rows: np.ndarray, labels: np.ndarray, groups: np.ndarray, num_classes: int, class_weight: str | None
) -> tuple[dict[str, float], dict[str, float]]:
    """Cross-validate all candidates; → the factors of those that are best, as in `Fit`, and the log-loss of each."""
    parts, truth = defaultdict(list), []
    for train, test in _folds(labels, groups):
        present = np.isin(np.arange(num_classes), labels[train])
        for name, (weight, bias) in _fit_candidates(rows[train], labels[train], num_classes, class_weight).items():
            values = rows[test] @ weight.T + bias
            values[:, ~present] = values[:, present].min()  # ABSENT would set the temperature
            parts[name].append(values)
        truth.append(labels[test])
    if not truth:
        return {f"discriminant, shrinkage {SHRINKAGES[len(SHRINKAGES) // 2]}": 1.0}, {}
    truth, logits = np.concatenate(truth), {name: np.concatenate(part) for name, part in parts.items()}
    temperatures = {name: fit_temperature(values, truth) for name, values in logits.items()}
    losses = {name: cross_entropy(values / temperatures[name], truth) for name, values in logits.items()}
    best = min(list(losses)[:-1], key=losses.get), "logistic"
    mean = sum(logits[name] / temperatures[name] for name in best) / 2
    temperature = fit_temperature(mean, truth)
    losses["mean of both"] = cross_entropy(mean / temperature, truth)
    winner = min(losses, key=losses.get)
    if winner == "mean of both":
        return {name: 1 / (2 * temperatures[name] * temperature) for name in best}, losses
    return {winner: 1 / temperatures[winner]}, losses


def _folds(labels: np.ndarray, groups: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Deal out the groups of each class to folds in turn, and keep as many folds as it takes to predict enough.

    Images of a class that a fold does not train on do not count. Groups are not weighed by their size, as in
    `fold_numbers`: that takes longer than the rest of a fit.
    """
    _, first, group_of = np.unique(groups, return_index=True, return_inverse=True)
    order = np.random.default_rng(SEED).permutation(len(first))
    fold_of_group = np.empty(len(first), dtype=int)
    fold_of_group[order[np.argsort(labels[first][order], kind="stable")]] = np.arange(len(first)) % FOLDS
    folds, predicted = [], 0
    for fold in range(FOLDS):
        asked = fold_of_group[group_of] == fold
        train, test = np.flatnonzero(~asked), np.flatnonzero(asked & np.isin(labels, labels[~asked]))
        if predicted < PREDICTED and len(test) and len(np.unique(labels[train])) > 1:
            folds.append((train, test))
            predicted += len(test)
    return folds
