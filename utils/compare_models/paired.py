"""Two models' predictions on the same images, compared image by image, and the loss that this excludes."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import softmax

from utils import intervals
from utils.metrics import expected_calibration_error, macro_f1

NEAREST = 10  # groups that the estimate rests on, those nearest to a flip, and no more than one in eight
FEWEST = 40  # groups: with fewer, there is nothing to estimate from
TRIED = 500  # images of a class, at most, on which the noise of the others is tried


class Shift(NamedTuple):
    """How far the second model moved the logits of each image, and how far they would have had to move for a flip."""

    before: np.ndarray  # (N,) predictions of the first model
    after: np.ndarray  # (N,) predictions of the second model
    margins: np.ndarray  # (N, C) ≥ 0, of the first prediction to each other class
    moves: np.ndarray  # (N, C) ≥ 0, by how much each margin shrank
    groups: np.ndarray  # (N,) numbers from 0


def compare_predictions(
    index: pd.DataFrame, reference: np.ndarray, logits: np.ndarray, classes: Sequence[str]
) -> dict[str, object]:
    """Compare two models' logits (N, C) on the images of `index` (columns class, group), as the report has it.

    McNemar's p is exact, differences are paired, intervals by group; `macro_f1_loss` is what `excluded_loss` says.
    Images that a model has not predicted (nan) do not count.
    """
    predicted = ~np.isnan(reference + logits).any(axis=1)
    index, reference, logits = index[predicted], reference[predicted], logits[predicted]
    labels, groups = index["class"].map(list(classes).index).to_numpy(), index["group"].to_numpy()
    first, second = reference.argmax(axis=1), logits.argmax(axis=1)
    agreeing = int((first == second).sum())
    fixed = int(((first != labels) & (second == labels)).sum())
    broken = int(((first == labels) & (second != labels)).sum())
    scores = [macro_f1(labels, predictions, len(classes)) for predictions in (first, second)]
    interval = intervals.macro_f1_difference_interval(labels, first, second, len(classes), groups)
    recall = recall_differences(labels, first, second, len(classes), groups)
    shift = measure_shift(reference, logits, groups)
    return {
        "images": len(labels),
        "agreement": agreeing / len(labels),
        "agreement_ci95": intervals.wilson_interval(agreeing, len(labels)),
        "flips": {"fixed": fixed, "broken": broken},
        "mcnemar_p": intervals.mcnemar_p(fixed, broken),
        "macro_f1": scores,
        "macro_f1_delta": scores[1] - scores[0],
        "macro_f1_delta_ci95": interval,
        "macro_f1_loss": excluded_loss(labels, shift, scores[0] - scores[1], -interval[0]),
        "recall_delta": dict(zip(classes, recall.tolist(), strict=True)),
        "ece": [expected_calibration_error(softmax(outputs, axis=1), labels) for outputs in (reference, logits)],
    }


def recall_differences(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, num_classes: int, groups: np.ndarray
) -> np.ndarray:
    """Recall(second) − recall(first) of each class with its paired 95 % interval; → (C, 3): difference, low, high.

    Of a class without images nothing is known: its interval is −1 to 1.
    """
    gains = (second == labels).astype(float) - (first == labels)
    rows = np.tile([0.0, -1.0, 1.0], (num_classes, 1))
    for label in np.unique(labels):
        of_class = labels == label
        effects = gains[of_class] / of_class.sum()
        low, high = intervals.paired_interval(effects, 1 / of_class.sum(), groups[of_class])
        rows[label] = effects.sum(), max(-1.0, low), min(1.0, high)
    return rows


def measure_shift(reference: np.ndarray, logits: np.ndarray, groups: np.ndarray) -> Shift:
    """Set the margins of the first model's logits (N, C) beside what the second model's logits differ from them."""
    rows, before = np.arange(len(reference)), reference.argmax(axis=1)
    difference = logits - reference
    margins = reference[rows, before][:, None] - reference
    moves = np.maximum(difference - difference[rows, before][:, None], 0)
    return Shift(before, logits.argmax(axis=1), margins, moves, np.unique(groups, return_inverse=True)[1])


def flip_ratios(shift: Shift) -> tuple[np.ndarray, np.ndarray]:
    """Say how near each prediction came to a flip, and to which class (N,) it flipped, would first, or is nearest.

    How near is the part (N,) of the margin to another class that the move has used up, above 1 where it flipped.
    """
    zero = np.zeros_like(shift.margins, dtype=float)
    ratios = np.divide(shift.moves, shift.margins, out=zero, where=shift.margins > 0)
    largest, flipped = ratios.max(axis=1), shift.before != shift.after
    own = shift.before[:, None] == np.arange(ratios.shape[1])
    nearest = np.where(own, np.inf, shift.margins).argmin(axis=1)  # where the logits moved away from every other class
    nearest_classes = np.where(flipped, shift.after, np.where(largest > 0, ratios.argmax(axis=1), nearest))
    return np.where(flipped, np.maximum(largest, np.nextafter(1, 2)), np.minimum(largest, 1)), nearest_classes


def excluded_loss(labels: np.ndarray, shift: Shift, seen: float, counted: float) -> dict[str, float]:
    """Say which loss of macro-F1 is excluded (97.5 %), when `seen` was lost and counting flips excludes `counted`.

    `counted` holds whatever the noise of other images may be; the verdict goes by `bound`, what margins and noise
    exclude where that is less, though never below what was seen.
    """
    effects, largest = intervals.flip_effects(labels, shift.before, flip_ratios(shift)[1], shift.margins.shape[1])
    estimate = estimate_loss(shift, np.maximum(-effects, 0), largest)
    return {"bound": float(min(counted, max(seen, estimate))), "counted": float(counted)}


def estimate_loss(shift: Shift, losses: np.ndarray, largest: float) -> float:
    """Estimate the loss that is excluded with 97.5 % confidence; `losses` (N,) ≥ 0 is what each flip would cost.

    The larger of two bounds. They see different faults: small margins with ordinary noise, and large noise that met
    large margins. A fault that no image shows is seen by neither. inf where too few images bear upon it. `largest` is
    what the next flip may cost at most. `bench/flip_risk.py` measures the coverage.
    """
    return max(_amplified(shift, losses, largest), _exchanged(shift, losses))


def _amplified(shift: Shift, losses: np.ndarray, largest: float) -> float:
    """Bound the loss from the flips that more noise of the same kind would cause.

    Flips come from small margins, and the share of images whose margin is below x is proportional to x for small x, as
    there are no more images next to the boundary than a little further on. Thus u times the noise causes u times the
    flips: the tail of the ratios has index 1, with which the flips above a threshold are extrapolated (Weissman 1978,
    JASA 73:812). Where the tail is heavier than that (Hill 1975, Annals of Statistics 3:1163), its own index counts.
    """
    count = shift.groups.max() + 1
    if count < FEWEST:
        return np.inf
    ratios = np.where(losses > 0, flip_ratios(shift)[0], 0)
    tops = np.zeros(count)
    np.maximum.at(tops, shift.groups, ratios)
    *above, threshold = np.sort(tops)[::-1][: min(NEAREST, count // 8)]
    if not 0 < threshold < 1:  # as many flips are there to be counted, or fewer groups have been moved at all
        return np.inf
    index = min(1.0, len(above) / max(np.log(np.array(above) / threshold).sum(), 1e-9))
    beyond = np.bincount(shift.groups, np.where(ratios > threshold, losses, 0))
    return threshold**index * intervals.rare_sum_interval(beyond, largest)[1]


def _exchanged(shift: Shift, losses: np.ndarray) -> float:
    """Bound the loss from the flips that each image's noise would cause in others of its prediction, on average."""
    expected = np.zeros(len(losses))
    for prediction in np.unique(shift.before):
        images = np.flatnonzero(shift.before == prediction)
        tried = images[:: math.ceil(len(images) / TRIED)]
        for image in tried:
            flips = (shift.moves[images] > shift.margins[image]).any(axis=1)
            expected[images] += flips * losses[image] / len(tried)
    return intervals.rare_sum_interval(np.bincount(shift.groups, expected), max(expected.max(), 1e-9))[1]
