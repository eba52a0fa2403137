"""None of the classes: how far an image's features lie from those of the classes, and whether that tells strangers."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.special import logsumexp
from torch import nn

from utils.cross_validation import fold_parts
from utils.intervals import resample_weights
from utils.progress import progress
from utils.train.confidence import to_probabilities
from utils.train.discriminant import fit_discriminants, principal_axes
from utils.train.head import Views

AXES = 16  # beside one per class: the deployed file grows with each
SHRINKAGE = 0.2
KEPT = 0.95  # of known images, by the threshold
WORKS = 0.7  # AUROC that its interval has to lie above
LEFT_OUT = 10  # classes, at most
RESAMPLES = 500


class Detector(NamedTuple):
    """Distance to the nearest class, Mahalanobis++ (Müller and Hein 2025, arXiv 2505.18032): of features of length 1.

    `weight` (K, D) and `bias` (K,) lead to the principal axes, in units of `spread` (K,), the standard deviation within
    a class, and `centers` (C, K) are the classes' means there. Off these axes, distance is that from the `mean` (D,) of
    all images, in units of `rest`.
    """

    weight: np.ndarray
    bias: np.ndarray
    spread: np.ndarray
    centers: np.ndarray
    mean: np.ndarray
    rest: np.ndarray

    def distances(self, features: np.ndarray) -> np.ndarray:
        """Say how far features (N, D) lie from the nearest class (N,); the deployed file computes the same."""
        directions = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
        places = directions @ self.weight.T + self.bias
        nearest = np.square(places[:, None] - self.centers).sum(axis=2).min(axis=1)
        off = np.square(directions - self.mean).sum(axis=1) - np.square(places * self.spread).sum(axis=1)
        return np.sqrt(nearest + off.clip(0) / self.rest**2)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Give all parts as a checkpoint holds them."""
        return {name: torch.from_numpy(np.asarray(part, dtype=np.float32)) for name, part in self._asdict().items()}


def fit_detector(features: np.ndarray, labels: np.ndarray) -> Detector:
    """Fit class means and the covariance that they share to features (N, D) of known images of classes (N,).

    The covariance is shrunk (Friedman 1989). Beyond the first axes it is one variance for all, which changes little and
    makes the deployed file small.
    """
    labels = np.unique(labels, return_inverse=True)[1]
    directions = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    mean, axes = principal_axes(directions)
    dimensions, axes = len(axes), axes[-(AXES + labels.max() + 1) :]  # the last ones are the longest
    rows = (directions - mean) @ axes.T
    known = fit_discriminants(rows, labels, labels.max() + 1)
    spread = np.sqrt(known.shrunk(SHRINKAGE))
    weight = (known.basis / spread).T @ axes
    off = np.square(directions - mean).sum() - np.square(rows).sum()
    rest = (1 - SHRINKAGE) * off / len(rows) / max(dimensions - len(axes), 1) + SHRINKAGE * known.variances.mean()
    return Detector(weight, -weight @ mean, spread, known.means @ (known.basis / spread), mean, np.sqrt(rest))


def out_of_fold(networks: list[nn.Module], views: Views, index: pd.DataFrame, fold_of: np.ndarray) -> np.ndarray:
    """Measure how far each image (N,) of the table lies, by detectors that saw neither it nor its group.

    Of each fold (`fold_of` (N,)), the `networks` have one that was trained without it.
    """
    distances = np.zeros(len(index))
    for network, (test, valid) in zip(networks, fold_parts(index["class"], fold_of), strict=True):
        features, labels = views.features_of(network, index), index["class"].to_numpy()
        detector = fit_detector(features[~test & ~valid], labels[~test & ~valid])
        distances[test] = detector.distances(features[test])
    return distances


def leave_one_out(fit: Callable, views: Views, index: pd.DataFrame, fold_of: np.ndarray) -> pd.DataFrame:
    """Train without a class, then show it, among images of the others that were not trained on either.

    `fit(train, valid)` returns a network. Each class in turn, ten at most; the others are asked about in two folds of
    `fold_of` (N,). → a row per class left out and image asked about: left_out, path, group, stranger; how strange it is
    by novelty, by maximum probability and by energy (Liu et al. 2020, arXiv 2010.03759).
    """
    classes, tables = index["class"].unique()[:LEFT_OUT], []
    parts = fold_parts(index["class"], fold_of)
    for number, name in enumerate(progress(classes, "classes left out")):
        stranger = (index["class"] == name).to_numpy()
        test, valid = parts[number % len(parts)]
        train = index[~test & ~valid & ~stranger]
        network = fit(train, index[valid & ~stranger])
        asked = index[test | valid | stranger]
        features = views.features_of(network, asked)
        detector = fit_detector(views.features_of(network, train), train["class"].to_numpy())
        table = asked[["path", "group"]].assign(left_out=name, stranger=asked["class"] == name)
        tables.append(table.assign(novelty=detector.distances(features), **_by_logits(network, features)))
    return pd.concat(tables, ignore_index=True)


def _by_logits(network: nn.Module, features: np.ndarray) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        layer = network.get_classifier()
        logits = layer(torch.from_numpy(features).to(layer.weight.device)).cpu().numpy()
    return {"maximum probability": -to_probabilities(logits).max(axis=1), "energy": -logsumexp(logits, axis=1)}


def score_strangers(left_out: pd.DataFrame, measure: str = "novelty") -> dict[str, float]:
    """Score how well a measure tells strangers: `auroc`, its 95 % interval by group (`low`, `high`), and `caught`.

    Means over the classes left out. Caught is the share of strangers that lie beyond 95 % of the known images.
    """
    curves, caught = [], []
    for _, table in left_out.groupby("left_out"):
        stranger, values = table["stranger"].to_numpy(), table[measure].to_numpy()
        weights = resample_weights(stranger, table["group"].to_numpy(), RESAMPLES)
        weights = np.concatenate([np.ones((1, len(table))), weights])
        curves.append(_auroc(values, stranger, weights))
        caught.append((values[stranger] > np.quantile(values[~stranger], KEPT)).mean())
    auroc, *resampled = np.mean(curves, axis=0)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return {"auroc": float(auroc), "low": float(low), "high": float(high), "caught": float(np.mean(caught))}


def _auroc(values: np.ndarray, stranger: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Say how often a stranger has the larger value, ties counting half, under rows of weights (B, N); → (B,)."""
    difference = values[stranger][:, None] - values[~stranger]
    larger = (np.sign(difference) + 1) / 2
    strangers, known = weights[:, stranger], weights[:, ~stranger]
    return (strangers @ larger * known).sum(axis=1) / (strangers.sum(axis=1) * known.sum(axis=1))


def threshold(distances: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """Find the distance that 95 % of known images (N,) keep below, and its 95 % interval by group."""
    weights = resample_weights(labels, groups, RESAMPLES)
    order = np.argsort(distances)
    shares = np.cumsum(weights[:, order], axis=1) / weights.sum(axis=1, keepdims=True)
    low, high = np.percentile(distances[order][(shares >= KEPT).argmax(axis=1)], [2.5, 97.5])
    return {"threshold": float(np.quantile(distances, KEPT)), "low": float(low), "high": float(high)}
