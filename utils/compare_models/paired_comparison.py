"""Two models' answers to the same images, compared image by image."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import softmax

from utils.compare_models.flip_risk import Changes, changes, estimate_loss, flip_ratios
from utils.intervals import flip_effects, macro_f1_difference_interval, mcnemar_p, paired_interval, wilson_interval
from utils.metrics import expected_calibration_error, macro_f1


def compare_answers(index: pd.DataFrame, reference: np.ndarray, logits: np.ndarray, classes: Sequence[str]) -> dict:
    """Compare two models' logits (N, C) on the images of `index` (columns class, group), as the report has it.

    → images, agreement and its interval, flips, exact McNemar p, macro-F1 of both, their paired difference with its
    interval by group, the loss that is excluded (`excluded_loss`), recall differences per class, expected calibration
    error of both. Images that a model has not answered (nan) do not count.
    """
    answered = ~np.isnan(reference + logits).any(axis=1)
    index, reference, logits = index[answered], reference[answered], logits[answered]
    labels, groups = index["class"].map(list(classes).index).to_numpy(), index["group"].to_numpy()
    first, second = reference.argmax(axis=1), logits.argmax(axis=1)
    agreeing = int((first == second).sum())
    fixed = int(((first != labels) & (second == labels)).sum())
    broken = int(((first == labels) & (second != labels)).sum())
    scores = [macro_f1(labels, answers, len(classes)) for answers in (first, second)]
    interval = macro_f1_difference_interval(labels, first, second, len(classes), groups)
    recall = recall_differences(labels, first, second, len(classes), groups)
    return {
        "images": len(labels),
        "agreement": agreeing / len(labels),
        "agreement_ci95": wilson_interval(agreeing, len(labels)),
        "flips": {"fixed": fixed, "broken": broken},
        "mcnemar_p": mcnemar_p(fixed, broken),
        "macro_f1": scores,
        "macro_f1_delta": scores[1] - scores[0],
        "macro_f1_delta_ci95": interval,
        "macro_f1_loss": excluded_loss(labels, changes(reference, logits, groups), scores[0] - scores[1], -interval[0]),
        "recall_delta": dict(zip(classes, recall.tolist(), strict=True)),
        "ece": [expected_calibration_error(softmax(outputs, axis=1), labels) for outputs in (reference, logits)],
    }


def excluded_loss(labels: np.ndarray, changed: Changes, seen: float, counted: float) -> dict[str, float]:
    """Say which loss of macro-F1 is excluded (97.5 %), when `seen` was lost and counting flips excludes `counted`.

    → counted, which holds whatever the noise of other images may be; bound, which margins and noise estimate where that
    is less, though never below what was seen. The verdict goes by the bound.
    """
    effects, largest = flip_effects(labels, changed.answers, flip_ratios(changed)[1], changed.margins.shape[1])
    estimate = estimate_loss(changed, np.maximum(-effects, 0), largest)
    return {"bound": float(min(counted, max(seen, estimate))), "counted": float(counted)}


def recall_differences(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, num_classes: int, groups: np.ndarray
) -> np.ndarray:
    """Recall(second) − recall(first) of each class with its paired 95 % interval; → (C, 3): difference, low, high.

    Of a class without images nothing is known: its interval is −1 to 1.
    """
    changes = (second == labels).astype(float) - (first == labels)
    rows = np.tile([0.0, -1.0, 1.0], (num_classes, 1))
    for label in np.unique(labels):
        of_class = labels == label
        effects = changes[of_class] / of_class.sum()
        low, high = paired_interval(effects, 1 / of_class.sum(), groups[of_class])
        rows[label] = effects.sum(), max(-1.0, low), min(1.0, high)
    return rows


def pair_sentences(pairs: dict[str, dict]) -> str:
    """Say in Markdown what `compare_answers` found, a line for each of `pairs`, where → what it found."""
    lines = []
    for where, pair in pairs.items():
        low, high = pair["macro_f1_delta_ci95"]
        least, most = pair["agreement_ci95"]
        lines.append(
            f"- {where}, {pair['images']} images: the same answer on {pair['agreement']:.1%} "
            f"({least:.1%} to {most:.1%}), {pair['flips']['fixed']} fixed, {pair['flips']['broken']} broken, "
            f"McNemar p = {pair['mcnemar_p']:.2f}; macro-F1 {pair['macro_f1_delta']:+.3f} ({low:+.3f} to {high:+.3f})."
        )
    return "\n".join(lines)
