"""What more images would gain, of one class and of all, in numbers and in a sentence."""

from collections.abc import Sequence

import numpy as np

from utils.config import listing
from utils.cross_validation import FOLDS
from utils.train.learning_curve import Curve, measured
from utils.train.power_law import forecast

FLAT = 0.02  # macro-F1: where surely less than this is gained by twice as many images, the curve is flat
ENOUGH_GROUPS = 8  # of a class, to thin them to an eighth
FARTHEST = 4  # times as many images, to extend a curve to


def report_curves(curve: Curve, of_smallest: Curve, classes: Sequence[str], more: int) -> dict:
    """Gather what the report holds: curves, their extension, and what `more` images of each or one class would gain.

    `curve` thins all classes, `of_smallest` one. Of new images, heads are trained on the same share as of the others.
    """
    share, spread = 1 - 1 / FOLDS, curve.spread()
    groups = [len(np.unique(curve.groups[curve.labels == label])) for label in range(len(classes))]
    recall = {name: measured(curve, label).reset_index().to_dict("records") for label, name in enumerate(classes)}
    (smallest,) = of_smallest.thinned
    return {
        "macro_f1": measured(curve).reset_index().to_dict("records"),
        "extended": forecast(curve, curve.sizes[-1] * np.array([1, 2, FARTHEST]), spread)
        .reset_index()
        .to_dict("records"),
        "recall": recall,
        "few_groups": {name: count for name, count in zip(classes, groups, strict=True) if count < ENOUGH_GROUPS},
        "smallest": classes[smallest],
        "gain_each": _gain(curve, more, share, spread),
        "gain_smallest": _gain(of_smallest, more, share, spread / np.sqrt(len(classes))),  # by one class alone
        "gain_doubled": _gain(curve, round(curve.sizes[-1] / share), share, spread),
    }


def _gain(curve: Curve, more: int, share: float, spread: float) -> dict[str, float]:
    """Forecast the gain of `more` images of each class that the curve thins, as far as it may be extended."""
    more = min(more, int((FARTHEST - 1) * curve.sizes[-1] / share))
    row = forecast(curve, [curve.sizes[-1] + more * share], spread).iloc[0]
    return {"images": more, "gain": row["gain"], "low": row["gain_low"], "high": row["gain_high"]}


def describe(report: dict) -> str:
    """Say it: what more images of the smallest class, and of every class, would gain."""
    smallest, each, doubled = (report[f"gain_{name}"] for name in ("smallest", "each", "doubled"))
    sentences = [
        f"{smallest['images']} more images of {report['smallest']} would gain {_amount(smallest)} macro-F1, "
        f"{each['images']} more of every class {_amount(each)}, twice as many of all {_amount(doubled)}."
    ]
    if report["few_groups"]:
        few = listing(f"{name} {count}" for name, count in report["few_groups"].items())
        sentences.append(f"So few groups ({few}) do not tell what photos of other objects would bring.")
    elif doubled["high"] < FLAT:
        sentences.append("The curve is flat: more of the same will not help.")
    elif doubled["low"] < 0:
        sentences.append("That more of the same helps is not shown.")
    return " ".join(sentences)


def _amount(gain: dict[str, float]) -> str:
    return f"**{gain['gain']:+.3f}** ({gain['low']:+.3f} to {gain['high']:+.3f})"
