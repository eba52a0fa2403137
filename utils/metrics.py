"""Scores with their uncertainty."""

import numpy as np
from scipy.stats import binomtest

from utils.config import SEED

DRAWS = 2000


def confusion(
    labels: np.ndarray, predictions: np.ndarray, num_classes: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """Count (true, predicted) pairs: (C, C), or (B, C, C) under B rows of image weights (B, N)."""
    pairs = np.asarray(labels) * num_classes + np.asarray(predictions)
    if weights is None:
        counts = np.bincount(pairs, minlength=num_classes**2).astype(np.float64)
    else:
        counts = weights @ np.eye(num_classes**2)[pairs]
    return counts.reshape(*counts.shape[:-1], num_classes, num_classes)


def f1_per_class(counts: np.ndarray) -> np.ndarray:
    """Compute F1 of each class from confusion counts (..., C, C); 0 where a class is neither present nor predicted."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    total = counts.sum(axis=-1) + counts.sum(axis=-2)
    return np.divide(2 * hits, total, out=np.zeros_like(total), where=total > 0)


def macro_f1(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> float:
    """Average F1 over the full list of classes, computed once over all predictions."""
    return float(f1_per_class(confusion(labels, predictions, num_classes)).mean())


def wilson_interval(hits: int, total: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    interval = binomtest(int(hits), int(total)).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def resample_weights(labels: np.ndarray, groups: np.ndarray, draws: int = DRAWS, seed: int = SEED) -> np.ndarray:
    """Draw how often each image counts in each bootstrap sample: (draws, N) integers.

    Two stages, as images of one object are not independent: groups with replacement within each class, then images with
    replacement within each group (Davison and Hinkley 1997, section 3.8).
    """
    generator = np.random.default_rng(seed)
    weights = np.zeros((draws, len(labels)))
    for label in np.unique(labels):
        names = np.unique(groups[labels == label])
        counts = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
        for name, count in zip(names, counts.T, strict=True):
            images = np.flatnonzero((labels == label) & (groups == name))
            weights[:, images] = generator.multinomial(count * len(images), np.full(len(images), 1 / len(images)))
    return weights


def macro_f1_interval(
    labels: np.ndarray, predictions: np.ndarray, num_classes: int, groups: np.ndarray
) -> tuple[float, float]:
    """95 % interval of macro-F1: bootstrap percentiles, resampled by group.

    The bootstrap sees no spread in a class that is all right or all wrong and would claim certainty, the more so the
    fewer groups there are. Each such class adds the distance to Wilson's bound for as many trials as it has groups,
    squared distances summing up as in MOVER (Zou and Donner 2008). `bench/intervals.py` measures the coverage.
    """
    score = macro_f1(labels, predictions, num_classes)
    weights = resample_weights(labels, groups)
    scores = f1_per_class(confusion(labels, predictions, num_classes, weights)).mean(axis=-1)
    low, high = np.percentile(scores, [2.5, 97.5])
    below, above = (score - low) ** 2, (high - score) ** 2
    for label in np.unique(labels):
        recall = (predictions[labels == label] == label).mean()
        if recall in (0, 1):
            trials = len(np.unique(groups[labels == label]))
            wilson_low, wilson_high = wilson_interval(trials * recall, trials)
            below += ((recall - wilson_low) / num_classes) ** 2
            above += ((wilson_high - recall) / num_classes) ** 2
    return max(0.0, float(score - np.sqrt(below))), min(1.0, float(score + np.sqrt(above)))


def macro_f1_difference_interval(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, num_classes: int, groups: np.ndarray
) -> tuple[float, float]:
    """95 % bootstrap interval of macro-F1(second) − macro-F1(first), paired: both are scored on the same resamples."""
    weights = resample_weights(labels, groups)
    scores = [f1_per_class(confusion(labels, each, num_classes, weights)).mean(axis=-1) for each in (first, second)]
    low, high = np.percentile(scores[1] - scores[0], [2.5, 97.5])
    return float(low), float(high)


def mcnemar_p(fixed: int, broken: int) -> float:
    """Two-sided exact McNemar test on the images that only one of two models gets right (McNemar 1947)."""
    return float(binomtest(fixed, fixed + broken).pvalue) if fixed + broken else 1.0


def detectable_difference(total: int) -> float:
    """Smallest share of `total` test images that one model must get right beyond another to reach p < 0.05.

    The best case of the exact McNemar test (McNemar 1947): all images they disagree on fall to one model. 1 when even
    all of them would not do.
    """
    flips = next((flips for flips in range(1, total + 1) if mcnemar_p(flips, 0) < 0.05), total)
    return flips / total
