"""None of the classes: how far an image's features lie from those of the classes, and whether that tells strangers."""

import copy
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from utils.config import SEED
from utils.cross_validation import OutOfFold, fold_parts
from utils.intervals import resample_weights
from utils.train.discriminant import fit_discriminants, principal_axes
from utils.train.head import Views

WEIGHTS = 2**15  # of the axes, unless there are as many classes: 64 KiB in the deployed file, in 16 bits each
SHRINKAGE = 0.2
KEPT = 0.95  # of known images, by the threshold
RESAMPLES = 500
FITTED = 2000  # images, at most, to fit a detector to


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
        """Give all parts as a checkpoint holds them, the largest two in 16 bits."""
        parts = {name: torch.tensor(part, dtype=torch.float32) for name, part in self._asdict().items()}
        return parts | {name: parts[name].half() for name in ("weight", "mean")}


def fit_detector(features: np.ndarray, labels: np.ndarray) -> Detector:
    """Fit class means and the covariance that they share to features (N, D) of known images of classes (N,).

    The covariance is shrunk (Friedman 1989). Beyond the first axes it is one variance for all, which changes little and
    makes the deployed file small.
    """
    labels = np.unique(labels, return_inverse=True)[1]
    directions = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    mean, axes = principal_axes(directions)
    count = max(labels.max() + 1, WEIGHTS // features.shape[1])
    dimensions, axes = len(axes), axes[-count:]  # the last ones are the longest
    rows = (directions - mean) @ axes.T
    known = fit_discriminants(rows, labels, labels.max() + 1)
    spread = np.sqrt(known.shrunk(SHRINKAGE))
    weight = (known.basis / spread).T @ axes
    off = np.square(directions - mean).sum() - np.square(rows).sum()
    rest = (1 - SHRINKAGE) * off / len(rows) / max(dimensions - len(axes), 1) + SHRINKAGE * known.variances.mean()
    return Detector(weight, -weight @ mean, spread, known.means @ (known.basis / spread), mean, np.sqrt(rest))


def fit(network: nn.Module, views: Views, train: pd.DataFrame) -> Detector:
    """Fit a detector to what a network sees of the images in `train`, rows of the table; 2,000 of them are enough."""
    some = train.sample(min(FITTED, len(train)), random_state=SEED).sort_index()
    return fit_detector(views.features_of(network, some), some["class"].to_numpy())


def out_of_fold(
    oof: OutOfFold, shipped: nn.Module, views: Views, index: pd.DataFrame, fold_of: np.ndarray
) -> np.ndarray:
    """Measure how far each image (N,) of the table lies, by networks and detectors that saw neither it nor its group.

    `oof` has the networks of the folds `fold_of` (N,), as weights of the `shipped` one.
    """
    distances = np.zeros(len(index))
    for fold, (test, valid) in zip(oof.networks, fold_parts(index["class"], fold_of), strict=True):
        network = copy.deepcopy(shipped)
        network.load_state_dict(fold["state"], strict=False)
        detector = fit(network, views, index[~test & ~valid])
        distances[test] = detector.distances(views.features_of(network, index[test]))
    return distances


def threshold(distances: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """Find the distance that 95 % of known images (N,) keep below, and its 95 % interval by group."""
    weights = resample_weights(labels, groups, RESAMPLES)
    order = np.argsort(distances)
    shares = np.cumsum(weights[:, order], axis=1) / weights.sum(axis=1, keepdims=True)
    low, high = np.percentile(distances[order][(shares >= KEPT).argmax(axis=1)], [2.5, 97.5])
    return {"threshold": float(np.quantile(distances, KEPT)), "low": float(low), "high": float(high)}
