"""The verdict: which file to ship, from the numbers alone; `templates/macros.j2` puts it into words."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas as pd

from utils.config import is_timed_here
from utils.report import render

NOT_SLOWER = 1.05  # times the other's latency: what lies within is not called slower
FAULTS = ("macro-F1 lost", "recall lost", "slower", "larger")  # codes of what is shown; all others are doubts


class Rule(NamedTuple):
    """What the second model has to show before it replaces the first."""

    first: str
    second: str
    minority: Sequence[str]  # classes that are short of images
    margin: float  # macro-F1 that it may lose at the far end of the interval, and recall that a minority may be seen to
    minority_margin: float  # recall that a minority may lose at the far end of its interval
    target: str = "here"  # what the second is for: where times here say nothing of that, they do not count


def decide(rule: Rule, models: pd.DataFrame, ratio: tuple[float, float], evidence: dict[str, dict]) -> dict:
    """Say which file to ship and why.

    The second model replaces the first only if it is smaller *and* not slower *and* no worse, and it has to show it:
    the interval of its latency `ratio` to the first must not reach beyond `NOT_SLOWER`; in each part of the `evidence`
    (where → what `compare_predictions` says) a loss of more than `margin` macro-F1 must be excluded; no minority class
    may be seen to lose more than `margin` of its recall, nor leave room for a loss of more than `minority_margin`.
    Otherwise the first ships, or PyTorch, should that be faster. `models` has a row per model: bytes, latency_ms.

    → ship: a row of `models`; outcome: 'ship', 'not shown', or 'do not ship' where the second is shown to be worse,
    larger or slower; codes: what speaks against it, a dictionary each, faults before doubts; numbers: what it rests on;
    turning_margin: the `margin` from which on it ships, None where none would do; reason: all this in sentences.
    """
    size = float(models["bytes"][rule.second] / models["bytes"][rule.first])
    timed = is_timed_here(rule.target)
    ratio = ratio if timed else None
    codes = _objections(rule, size, ratio, evidence)
    ship, outcome = rule.second, "ship"
    if codes:
        outcome = "do not ship" if codes[0]["code"] in FAULTS else "not shown"
        others = models.index.intersection([rule.first, "pytorch"] if timed else [rule.first])
        ship = str(models.loc[others, "latency_ms"].idxmin())
    losses = [pair["macro_f1_loss"] for pair in evidence.values()]
    verdict = {"ship": ship, "outcome": outcome, "codes": codes}
    verdict["turning_margin"] = _turning_margin(rule, size, ratio, evidence)
    verdict["numbers"] = {
        "margin": rule.margin,
        "bound": _round_up(max(loss["bound"] for loss in losses)),
        "counted": _round_up(max(loss["counted"] for loss in losses)),
        "lost": max(0.0, *(-pair["macro_f1_delta"] for pair in evidence.values())),
        "size": size,
        "latency_ratio": ratio and list(ratio),
        "target": rule.target,
    }
    if verdict["turning_margin"] is not None:  # or no number of images would do
        verdict["numbers"]["more_images"] = _more_images(rule, evidence)
    return verdict | {"reason": render("reason.txt", pair=[rule.first, rule.second], verdict=verdict)}


def _objections(rule: Rule, size: float, ratio: tuple[float, float] | None, evidence: dict) -> list[dict]:
    """List in what the second model is shown to be worse, slower or larger, and then what is not excluded."""
    codes = [*_macro_f1_losses(rule, evidence), *_recall_losses(rule, evidence)]
    low, high = ratio or (0, 0)
    if high > NOT_SLOWER:
        code = "slower" if low > 1 else "slower not excluded"
        codes.append({"code": code, "low": low, "high": high, "allowed": NOT_SLOWER})
    if size >= 1:
        codes.append({"code": "larger", "size": size})
    return sorted(codes, key=lambda code: code["code"] not in FAULTS)


def _macro_f1_losses(rule: Rule, evidence: dict) -> Iterator[dict]:
    for where, pair in evidence.items():
        low, high = pair["macro_f1_delta_ci95"]
        bound = pair["macro_f1_loss"]["bound"]
        found = {"where": where, "images": pair["images"], "bound": _round_up(bound), "allowed": rule.margin}
        if bound > rule.margin and high < 0:
            yield {"code": "macro-F1 lost", "low": -high, "high": -low} | found
        elif bound > rule.margin:
            yield {"code": "macro-F1 loss not excluded"} | found


def _recall_losses(rule: Rule, evidence: dict) -> Iterator[dict]:
    """Name, of the minority classes that lose too much, and of those that may, the one that loses most."""
    for where, pair in evidence.items():
        recall = {name: pair["recall_delta"][name] for name in rule.minority}
        seen = {name: -change for name, (change, _, _) in recall.items() if -change > rule.margin}
        room = {name: -low for name, (_, low, _) in recall.items() if name not in seen and -low > rule.minority_margin}
        for code, allowed, losses in (
            ("recall lost", rule.margin, seen),
            ("recall loss not excluded", rule.minority_margin, room),
        ):
            if losses:
                name = max(losses, key=losses.get)
                found = {"code": code, "allowed": allowed, "where": where, "images": pair["images"]}
                yield found | {"class": name, "loss": losses[name], "others": len(losses) - 1}


def _more_images(rule: Rule, evidence: dict) -> int:
    """Estimate how many more images would exclude the loss: the bound shrinks as their number grows.

    0 where more would not help, as the loss that is seen is too large by itself.
    """
    if any(-pair["macro_f1_delta"] > rule.margin for pair in evidence.values()):
        return 0
    excess = [pair["images"] * (pair["macro_f1_loss"]["bound"] / rule.margin - 1) for pair in evidence.values()]
    return max(0, math.ceil(max(excess)))


def _turning_margin(rule: Rule, size: float, ratio: tuple[float, float] | None, evidence: dict) -> float | None:
    """Find the smallest margin with which the second model ships; None if something else keeps it back."""
    if _objections(rule._replace(margin=1), size, ratio, evidence):
        return None
    losses = [pair["macro_f1_loss"]["bound"] for pair in evidence.values()]
    seen = [-pair["recall_delta"][name][0] for pair in evidence.values() for name in rule.minority]
    return _round_up(max(losses + seen))


def _round_up(loss: float) -> float:
    """Round a loss up to four digits: what is said to be excluded is, and a margin of this size is enough."""
    return math.ceil(loss * 1e4 - 1e-9) / 1e4
