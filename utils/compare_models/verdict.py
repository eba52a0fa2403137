"""Two models' answers to the same images, and the verdict that follows from the numbers alone."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import softmax

from utils.intervals import macro_f1_difference_interval, mcnemar_p, recall_differences, wilson_interval
from utils.metrics import expected_calibration_error, macro_f1

NOT_SLOWER = 1.05  # times the other's latency: what lies within is not called slower


def compare_answers(
    labels: np.ndarray, reference: np.ndarray, logits: np.ndarray, groups: np.ndarray, classes: Sequence[str]
) -> dict:
    """Compare two models' logits (N, C) on the same images: what the report says of a pair.

    → images, agreement and its interval, flips, exact McNemar p, macro-F1 of both, their paired difference with its
    interval by group, recall differences per class, expected calibration error of both.
    """
    first, second, num_classes = reference.argmax(1), logits.argmax(1), len(classes)
    same, right, right_too = first == second, first == labels, second == labels
    fixed, broken = int((right_too & ~right).sum()), int((right & ~right_too).sum())
    scores = [macro_f1(labels, each, num_classes) for each in (first, second)]
    recall = recall_differences(labels, first, second, num_classes, groups)
    return {
        "images": len(labels),
        "agreement": float(same.mean()),
        "agreement_ci95": wilson_interval(same.sum(), len(same)),
        "flips": {"fixed": fixed, "broken": broken},
        "mcnemar_p": mcnemar_p(fixed, broken),
        "macro_f1": scores,
        "macro_f1_delta": scores[1] - scores[0],
        "macro_f1_delta_ci95": macro_f1_difference_interval(labels, first, second, num_classes, groups),
        "recall_delta": {name: list(map(float, row)) for name, row in zip(classes, recall, strict=True)},
        "ece": [expected_calibration_error(softmax(each, axis=1), labels) for each in (reference, logits)],
    }


def decide(
    models: pd.DataFrame,
    ratio: tuple[float, float],
    pairs: dict[str, dict],
    minority: Sequence[str],
    margin: float,
    minority_margin: float,
    pair: tuple[str, str] = ("onnx", "int8"),
) -> dict[str, str]:
    """Say which file to ship and why, from the numbers alone.

    The second of `pair` replaces the first only if it is smaller *and* not slower *and* no worse, and it has to show
    it: the interval of its latency `ratio` to the first must not reach beyond `NOT_SLOWER`; in each of `pairs` (where →
    what `compare_answers` says) the interval of macro-F1's difference must stay above −`margin`; no minority class may
    lose more than `margin` of its recall, nor leave room for a loss of more than `minority_margin`. Otherwise the
    first ships, or PyTorch, should that be faster. `models` has a row per model: bytes, latency_ms (median, one image).
    """
    first, second = pair
    smaller = models["bytes"][second] / models["bytes"][first]
    objections = [
        *([f"it is not smaller ({smaller:.0%} of {first})"] if smaller >= 1 else []),
        *_slower(ratio, first),
        *(text for where, each in pairs.items() for text in _worse(where, each, margin)),
        *(text for where, each in pairs.items() for text in _unfair(where, each, minority, margin, minority_margin)),
    ]
    if not objections:
        speed = f"{ratio[0]:.2f} to {ratio[1]:.2f} of its latency"
        reason = f"{smaller:.0%} of {first}'s size, {speed}, no worse within {margin} macro-F1"
        return {"ship": second, "reason": reason}
    fastest = models.loc[models.index.intersection([first, "pytorch"]), "latency_ms"].idxmin()
    return {"ship": str(fastest), "reason": f"not {second}, since " + " and ".join(objections)}


def _slower(ratio: tuple[float, float], first: str) -> list[str]:
    low, high = ratio
    if low > 1 and high > NOT_SLOWER:
        return [f"it is slower ({low:.2f} to {high:.2f} times {first}'s time for one image)"]
    if high > NOT_SLOWER:
        return [f"that it is slower cannot be excluded ({low:.2f} to {high:.2f} times {first}'s time for one image)"]
    return []


def _worse(where: str, pair: dict, margin: float) -> list[str]:
    low, high = pair["macro_f1_delta_ci95"]
    if high < 0 and low < -margin:
        return [f"it loses {-high:.3f} to {-low:.3f} macro-F1 {where}"]
    if low < -margin:
        return [f"a loss of {-low:.3f} macro-F1 cannot be excluded {where} ({pair['images']} images)"]
    return []


def _unfair(where: str, pair: dict, minority: Sequence[str], margin: float, minority_margin: float) -> list[str]:
    lost, possible = ({name: -pair["recall_delta"][name][column] for name in minority} for column in (0, 1))
    seen = {name: loss for name, loss in lost.items() if loss > margin}
    unclear = {name: loss for name, loss in possible.items() if name not in seen and loss > minority_margin}
    texts = []
    if seen:
        name, more = _largest(seen)
        texts.append(f"{name} loses {seen[name]:.1%} of its recall {where}{more}")
    if unclear:
        name, more = _largest(unclear)
        texts.append(f"that {name} loses {unclear[name]:.0%} of its recall cannot be excluded {where}{more}")
    return texts


def _largest(losses: dict[str, float]) -> tuple[str, str]:
    """Find who loses most, and say how many lose too much beside it."""
    return max(losses, key=losses.get), f" ({len(losses) - 1} more classes likewise)" if len(losses) > 1 else ""
