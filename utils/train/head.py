"""The last layer: discriminant analysis on the features of all blocks, as a classifier of scikit-learn."""

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.linalg import eigh  # with scipy's, heads fitted in two threads take as long as in one
from sklearn.base import BaseEstimator, ClassifierMixin
from threadpoolctl import threadpool_limits

from utils.config import SEED
from utils.metrics import cross_entropy
from utils.model import AllBlocks, replace_classifier
from utils.train.calibration import fit_temperature, to_probabilities

AXES = 512  # principal ones, at most: the time of a fit grows with their cube
SHRINKAGES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7)
FOLDS = 3  # to choose shrinkage and features
AXES_IMAGES = 1000  # rows, at most, to find the axes and to choose on: the time grows with their cube, too
STEPS = 255  # of 8 bits over the range of all features
NOTHING = 1e-6  # of the largest variance: what rounding to 32 bits leaves on an axis that there is not
ABSENT = -1000.0  # logit of a class without rows


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

    def layer(self, shrinkage: float, class_weight: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Solve for the linear layer (Hastie et al. 2009, section 4.3); "balanced" gives classes equal priors."""
        weight = self.means @ (self.basis / self.shrunk(shrinkage)) @ self.basis.T
        priors = np.maximum(self.counts, 1) if class_weight is None else np.ones(len(self.counts))
        bias = np.log(priors / priors.sum()) - (weight * self.means).sum(axis=1) / 2
        return weight, np.where(self.counts > 0, bias, ABSENT)


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


def principal_axes(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the mean (D,) of rows (M, D) and their first 512 principal axes (K, D), or as many as there are.

    From the smaller of the two products of the centered rows, which takes a tenth of the time of decomposing them.
    """
    mean = rows.mean(axis=0, dtype=np.float64)
    centered = rows - mean.astype(rows.dtype)
    tall = len(rows) > rows.shape[1]
    squares, vectors = eigh((centered.T @ centered if tall else centered @ centered.T).astype(np.float64))
    kept = np.array([len(squares) - 1])
    if squares[-1] > 0:
        kept = np.flatnonzero(squares > squares[-1] * NOTHING)[-AXES:]
    if tall:
        return mean, vectors[:, kept].T
    lengths = np.sqrt(squares[kept].clip(np.finfo(np.float32).tiny))
    return mean, (vectors[:, kept] / lengths).T.astype(rows.dtype) @ centered


class Projection(NamedTuple):
    """Some `columns` of features (M, D), scaled, on their principal axes: x ↦ (x · `scale` − `mean`) `axes`ᵀ."""

    columns: slice
    scale: np.ndarray
    mean: np.ndarray
    axes: np.ndarray

    def rows(self, features: np.ndarray) -> np.ndarray:
        """Project features (M, D) to (M, K)."""
        folded = (self.axes * self.scale).T.astype(features.dtype)  # in 64 bits, copies would fill the memory
        return features[:, self.columns] @ folded - self.mean @ self.axes.T

    def layer(self, weight: np.ndarray, bias: np.ndarray, features: int) -> tuple[np.ndarray, np.ndarray]:
        """Turn a layer on projected rows into one on so many features: weight (C, D) and bias (C,)."""
        weight, whole = weight @ self.axes, np.zeros((len(weight), features))
        whole[:, self.columns] = weight * self.scale
        return whole, bias - weight @ self.mean


class Head(ClassifierMixin, BaseEstimator):
    """A linear layer fitted to features (N, D), the first step of LP-FT (Kumar et al. 2022, arXiv 2202.10054).

    Discriminant analysis with a shrunken covariance (Friedman 1989) on principal axes. How much it is shrunk, and
    whether the layer sees all blocks or the last one alone, is chosen by log-loss in cross-validation by group, inside
    the rows of a fit; there, too, the temperature is fitted by which the layer is divided.

    `sizes` counts the features of each block, those of the network's own last layer being the last; None: all are. Each
    block is scaled to a total variance of 1. Features are centered, not standardized: those that hardly vary, as under
    a plain background, would get weights that turn INT8's rounding into the prediction. `num_classes` may exceed the
    classes that have rows: those without are never predicted. `class_weight` "balanced" gives all equal priors.

    Fitted: `coef_` (C, D), `intercept_` (C,), `classes_` (C,), `candidates_`, the log-loss of each, and `chosen_`.
    """

    def __init__(
        self, sizes: Sequence[int] | None = None, num_classes: int | None = None, class_weight: str | None = None
    ):
        self.sizes = sizes
        self.num_classes = num_classes
        self.class_weight = class_weight

    @threadpool_limits.wrap(limits=1)  # on so few rows, threads mostly wait for each other
    def fit(self, features: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None) -> Self:
        """Fit to features (N, D), labels (N,) from 0, and `groups` (N,), which cross-validation keeps whole."""
        groups = np.arange(len(labels)) if groups is None else groups
        self.classes_ = np.arange(self.num_classes or labels.max() + 1)
        sample = np.sort(np.random.default_rng(SEED).permutation(len(features))[:AXES_IMAGES])
        projections = self._project(features[sample])
        temperatures = self._compare(projections, features[sample], labels[sample], groups[sample])
        self.chosen_ = min(self.candidates_, key=self.candidates_.get)
        name, shrinkage = self.chosen_
        known = fit_discriminants(projections[name].rows(features), labels, len(self.classes_))
        layer = projections[name].layer(*known.layer(shrinkage, self.class_weight), features.shape[1])
        self._keep(*layer, temperatures[self.chosen_], np.unique(labels))
        return self

    def _keep(self, weight: np.ndarray, bias: np.ndarray, temperature: float, present: np.ndarray) -> None:
        """Store the layer, moved so that the same predictions need a smaller range."""
        self.coef_ = (weight - weight[present].mean(axis=0)) / temperature
        self.intercept_ = (bias - bias[present].mean()) / temperature
        self.intercept_[np.setdiff1d(self.classes_, present)] = ABSENT

    def _project(self, features: np.ndarray) -> dict[str, Projection]:
        """Put the features to choose from on their principal axes, each block scaled to a total variance of 1."""
        sizes = self.sizes or [features.shape[1]]
        starts = np.cumsum([0, *sizes[:-1]])
        totals = np.add.reduceat(features.var(axis=0, dtype=np.float64), starts)
        scale = np.repeat(1 / np.sqrt(np.where(totals > 0, totals, 1)), sizes).astype(features.dtype)
        choices = {"all blocks": slice(None)}
        if len(sizes) > 1:
            choices["last block"] = slice(starts[-1], None)
        return {
            name: Projection(columns, scale[columns], *principal_axes(features[:, columns] * scale[columns]))
            for name, columns in choices.items()
        }

    def _compare(
        self, projections: dict[str, Projection], features: np.ndarray, labels: np.ndarray, groups: np.ndarray
    ) -> dict[tuple[str, float], float]:
        """Cross-validate all candidates and store the log-loss of each; → the temperature of each."""
        folds, temperatures = list(_folds(labels, groups)), {}
        if not folds:  # too few groups to compare anything
            self.candidates_ = {(name, SHRINKAGES[-1]): np.nan for name in projections}
            return dict.fromkeys(self.candidates_, 1.0)
        self.candidates_, truth = {}, np.concatenate([labels[test] for _, test in folds])
        for name, projection in projections.items():
            for shrinkage, logits in self._predict_folds(projection.rows(features), labels, folds).items():
                temperature = fit_temperature(logits, truth)
                temperatures[name, shrinkage] = temperature
                self.candidates_[name, shrinkage] = cross_entropy(logits / temperature, truth)
        return temperatures

    def _predict_folds(self, rows: np.ndarray, labels: np.ndarray, folds: list) -> dict[float, np.ndarray]:
        """Predict rows (M, K) in cross-validation; → logits by shrinkage, fold after fold."""
        parts = {shrinkage: [] for shrinkage in SHRINKAGES}
        for train, test in folds:
            present = np.isin(self.classes_, labels[train])
            known = fit_discriminants(rows[train], labels[train], len(self.classes_))
            for shrinkage, logits in parts.items():
                weight, bias = known.layer(shrinkage, self.class_weight)
                values = rows[test] @ weight.T + bias
                values[:, ~present] = values[:, present].min()  # ABSENT would set the temperature
                logits.append(values)
        return {shrinkage: np.concatenate(logits) for shrinkage, logits in parts.items()}

    def decision_function(self, features: np.ndarray) -> np.ndarray:
        """Return logits (N, C) of features (N, D)."""
        return features @ self.coef_.T + self.intercept_

    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        """Return probabilities (N, C) of features (N, D)."""
        return to_probabilities(self.decision_function(features))

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return the most probable class (N,) of features (N, D)."""
        return self.decision_function(features).argmax(axis=1)


def attach(network: AllBlocks, head: Head) -> AllBlocks:
    """Copy a network and put a fitted head in place of its last layer; → the copy."""
    model = copy.deepcopy(network)
    replace_classifier(model, len(head.classes_))
    layer = model.get_classifier()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(head.coef_))
        layer.bias.copy_(torch.from_numpy(head.intercept_))
    return model


def used(model: AllBlocks) -> str:
    """Say which features a model's last layer has a weight for: of "all blocks", or of the "last" one."""
    inner = model.get_classifier().weight[:, : -model.sizes[-1]]
    return "all blocks" if bool((inner != 0).any()) else "last"


def _folds(labels: np.ndarray, groups: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Deal out the groups of each class to folds in turn; → positions (train, test) of each fold.

    Images of a class that a fold does not train on do not count. Groups are not weighed by their size, as in
    `fold_numbers`: that takes longer than the rest of a fit.
    """
    _, first, group_of = np.unique(groups, return_index=True, return_inverse=True)
    order = np.random.default_rng(SEED).permutation(len(first))
    fold_of_group = np.empty(len(first), dtype=int)
    fold_of_group[order[np.argsort(labels[first][order], kind="stable")]] = np.arange(len(first)) % FOLDS
    for fold in range(FOLDS):
        held_out = fold_of_group[group_of] == fold
        train = np.flatnonzero(~held_out)
        test = np.flatnonzero(held_out & np.isin(labels, labels[~held_out]))
        if len(test) and len(np.unique(labels[train])) > 1:
            yield train, test
