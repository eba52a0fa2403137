"""Intervals: how sure a score or a difference of two scores is."""

from functools import lru_cache

import numpy as np
import pandas as pd
from scipy.stats import binomtest, gamma, norm, t

from utils.config import SEED
from utils.metrics import confusion, macro_f1, weighted_macro_f1

DRAWS = 2000  # resamples of a bootstrap


def wilson_interval(hits: float, total: float) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927); `total` may be no whole number, as an effective sample size is."""
    if total == 0:
        return 0.0, 1.0
    share, square = hits / total, norm.ppf(0.975) ** 2
    center = (share + square / (2 * total)) / (1 + square / total)
    half = np.sqrt(square * (share * (1 - share) / total + square / (4 * total**2))) / (1 + square / total)
    return float(max(0.0, center - half)), float(min(1.0, center + half))


def share_interval(hits: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """95 % interval of the share of images (N,) that are hits, where images of one group are alike.

    Wilson's formula for the effective sample size of a cluster sample, lessened by the t quantile of few groups (Korn
    and Graubard 1998, Survey Methodology 24:193). Without any spread the groups themselves are the trials.
    """
    share, names = hits.mean(), np.unique(groups, return_inverse=True)[1]
    trials, sizes = len(np.unique(names)), np.bincount(names)
    if 0 < share < 1 and trials > 1:
        residuals = np.bincount(names, hits) - share * sizes
        variance = trials / (trials - 1) * np.square(residuals).sum() / len(hits) ** 2
        spread = min(share * (1 - share) / variance, len(hits)) if variance else len(hits)
        trials = spread * (norm.ppf(0.975) / t.ppf(0.975, trials - 1)) ** 2
    return wilson_interval(share * trials, trials)


def codes(values: np.ndarray) -> bytes:
    """Number values (N,) in their order, as bytes of int64: a key that tells what is remembered for them."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64).tobytes()


def resample_weights(labels: np.ndarray, groups: np.ndarray, draws: int = DRAWS, seed: int = SEED) -> np.ndarray:
    """Draw how often each image counts in each bootstrap sample: (draws, N) whole numbers, to read only.

    Groups with replacement within each class, then images within each group (Davison and Hinkley 1997, section 3.8).
    """
    return _draw_weights(codes(labels), codes(groups), draws, seed)


@lru_cache(2)  # many scores are resampled alike, and to draw takes longer than to score
def _draw_weights(label_codes: bytes, group_codes: bytes, draws: int, seed: int) -> np.ndarray:
    labels, groups = np.frombuffer(label_codes, np.int64), np.frombuffer(group_codes, np.int64)
    generator = np.random.default_rng(seed)
    weights = np.zeros((draws, len(labels)), dtype=np.float32)  # whole numbers, so half the memory will do
    for label in np.unique(labels):
        images = np.flatnonzero(labels == label)
        names = np.unique(groups[images])
        counts = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
        for name, count in zip(names, counts.T, strict=True):
            members = images[groups[images] == name]
            weights[:, members] = generator.multinomial(count * len(members), np.full(len(members), 1 / len(members)))
    weights.flags.writeable = False
    return weights


def macro_f1_interval(
    labels: np.ndarray, predictions: np.ndarray, num_classes: int, groups: np.ndarray
) -> tuple[float, float]:
    """95 % interval of macro-F1: bootstrap percentiles, resampled by group.

    The bootstrap sees no spread in a class that is all right or all wrong. Each such class adds the distance to
    Wilson's bound for as many trials as it has groups, squared distances summing up as in MOVER (Zou and Donner 2008).
    `bench/intervals.py` measures the coverage.
    """
    score = macro_f1(labels, predictions, num_classes)
    weights = resample_weights(labels, groups)
    scores = weighted_macro_f1(labels, predictions, num_classes, weights)
    low, high = np.percentile(scores, [2.5, 97.5])
    below, above = np.hypot([score - low, high - score], unseen_spread(labels, predictions, num_classes, groups))
    return max(0.0, float(score - below)), min(1.0, float(score + above))


def unseen_spread(labels: np.ndarray, predictions: np.ndarray, num_classes: int, groups: np.ndarray) -> np.ndarray:
    """How far macro-F1 may lie below and above what a bootstrap shows (2,): see `macro_f1_interval`."""
    spread = np.zeros(2)
    for label in np.unique(labels):
        recall = (predictions[labels == label] == label).mean()
        if recall in (0, 1):
            trials = len(np.unique(groups[labels == label]))
            spread += np.square(np.subtract(wilson_interval(trials * recall, trials), recall) / num_classes)
    return np.sqrt(spread)


def rare_sum_interval(effects: np.ndarray, largest: float) -> tuple[float, float]:
    """95 % interval of a sum of rare events' effects (G,) ≥ 0, where one event unseen so far weighs `largest` at most.

    The gamma interval for weighted sums of Poisson counts (Fay and Feuer 1997, Statistics in Medicine 16:791). Without
    any event it reaches from 0 to 3.69 times `largest`, as does the exact one; with equal effects it is Garwood's.
    """
    total, squares = effects.sum(), np.square(effects).sum()
    low = gamma.ppf(0.025, total**2 / squares, scale=squares / total) if total else 0.0
    total, squares = total + largest, squares + largest**2  # with the one event that may come next
    return float(low), float(gamma.ppf(0.975, total**2 / squares, scale=squares / total))


def paired_interval(effects: np.ndarray, largest: float, groups: np.ndarray) -> tuple[float, float]:
    """95 % interval of a sum of effects (N,), of which few are not 0: what each changed prediction gains or loses.

    Intervals of losses and of gains are joined by MOVER (Zou and Donner 2008); a group's changes count as one event.
    """
    names = np.unique(groups, return_inverse=True)[1]
    losses, gains = np.bincount(names, np.maximum(-effects, 0)), np.bincount(names, np.maximum(effects, 0))
    loss_low, loss_high = rare_sum_interval(losses, largest)
    gain_low, gain_high = rare_sum_interval(gains, largest)
    lost, gained = losses.sum(), gains.sum()
    below = np.hypot(loss_high - lost, gained - gain_low)
    above = np.hypot(lost - loss_low, gain_high - gained)
    return float(gained - lost - below), float(gained - lost + above)


def flip_effects(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, num_classes: int
) -> tuple[np.ndarray, float]:
    """Say what each changed prediction does to macro-F1, alone; → effects (N,), and the largest loss one can cause."""
    counts = confusion(labels, first, num_classes)
    hits, total = np.diag(counts), counts.sum(axis=0) + counts.sum(axis=1)  # F1 of a class is 2 · hits / total
    before = 2 * hits / np.maximum(total, 1)
    left = 2 * (hits[first] - (first == labels)) / np.maximum(total[first] - 1, 1)  # F1 of the class that loses it
    entered = 2 * (hits[second] + (second == labels)) / (total[second] + 1)  # and of the class that gains it
    effects = np.where(first == second, 0, left - before[first] + entered - before[second]) / num_classes
    # the largest loss: a right prediction of the one class that becomes a wrong one of another class
    missed = before - 2 * (hits - 1) / np.maximum(total - 1, 1)
    taken = before - 2 * hits / (total + 1)
    losses = np.where(np.eye(num_classes, dtype=bool), 0, missed[:, None] + taken)[hits > 0]
    largest = float(np.max(losses, initial=0)) / num_classes
    return effects, largest or 1.0  # where no prediction is right, a loss has no other bound


def repeated_score(outputs: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """Macro-F1 of repeated logits or probabilities (R, N, C) and its 95 % interval by group, means over repeats."""
    predictions, num_classes = outputs.argmax(axis=2), outputs.shape[2]
    low, high = np.mean([macro_f1_interval(labels, row, num_classes, groups) for row in predictions], axis=0)
    score = np.mean([macro_f1(labels, row, num_classes) for row in predictions])
    return {"score": float(score), "low": float(low), "high": float(high)}


def macro_f1_difference_interval(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, num_classes: int, groups: np.ndarray
) -> tuple[float, float]:
    """95 % interval of macro-F1(second) − macro-F1(first), paired: both predict the same images.

    The wider one, at each end, of the bootstrap by group, which knows only the changes it has seen, and
    `paired_interval`. `bench/intervals.py` measures the coverage.
    """
    weights = resample_weights(labels, groups)
    before = weighted_macro_f1(labels, first, num_classes, weights)
    after = weighted_macro_f1(labels, second, num_classes, weights)
    low, high = np.percentile(after - before, [2.5, 97.5])
    effects, largest = flip_effects(labels, first, second, num_classes)
    rare_low, rare_high = paired_interval(effects, largest, groups)
    shift = macro_f1(labels, second, num_classes) - macro_f1(labels, first, num_classes) - effects.sum()
    return max(-1.0, min(float(low), rare_low + shift)), min(1.0, max(float(high), rare_high + shift))


def compare_predictions(
    predictions: dict[str, np.ndarray], reference: str, labels: np.ndarray, groups: np.ndarray
) -> pd.DataFrame:
    """Compare predictions (N,) by name with a `reference`; → a row each: macro_f1, and paired difference, low, high."""
    num_classes, rows = labels.max() + 1, {}
    first = predictions[reference]
    for name, second in predictions.items():
        interval = 0.0, 0.0
        if name != reference:
            interval = macro_f1_difference_interval(labels, first, second, num_classes, groups)
        rows[name] = macro_f1(labels, second, num_classes), *interval
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["macro_f1", "low", "high"])
    table.insert(1, "difference", table["macro_f1"] - table.loc[reference, "macro_f1"])
    return table


def repeated_difference(
    first: np.ndarray, second: np.ndarray, labels: np.ndarray, groups: np.ndarray
) -> tuple[float, float, float]:
    """Macro-F1(second) − macro-F1(first) of repeated logits (R, N, C), and its 95 % interval; means over repeats."""
    num_classes, found = first.shape[2], []
    for before, after in zip(first.argmax(axis=2), second.argmax(axis=2), strict=True):
        difference = macro_f1(labels, after, num_classes) - macro_f1(labels, before, num_classes)
        found.append((difference, *macro_f1_difference_interval(labels, before, after, num_classes, groups)))
    return tuple(np.mean(found, axis=0).tolist())


def mcnemar_p(fixed: int, broken: int) -> float:
    """Two-sided exact McNemar test on the images that only one of two models gets right (McNemar 1947)."""
    return float(binomtest(fixed, fixed + broken).pvalue) if fixed + broken else 1.0
