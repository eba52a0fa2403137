"""The verdict: which file to ship, from the numbers alone."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

NOT_SLOWER = 1.05  # times the other's latency: what lies within is not called slower


class Rule(NamedTuple):
    """What the second model has to show before it replaces the first."""

    first: str
    second: str
    minority: Sequence[str]  # classes that are short of images
    margin: float  # macro-F1 that it may lose at the far end of the interval, and recall that a minority may be seen to
    minority_margin: float  # recall that a minority may lose at the far end of its interval


def decide(rule: Rule, models: pd.DataFrame, ratio: tuple[float, float], judged: dict[str, dict]) -> dict[str, str]:
    """Say which file to ship and why; the reason is whole sentences but for the last full stop, the strongest first.

    The second model replaces the first only if it is smaller *and* not slower *and* no worse, and it has to show it:
    the interval of its latency `ratio` to the first must not reach beyond `NOT_SLOWER`; in each of `judged` (where →
    what `compare_answers` says) the interval of macro-F1's difference must stay above −`margin`; no minority class may
    lose more than `margin` of its recall, nor leave room for a loss of more than `minority_margin`. Otherwise the
    first ships, or PyTorch, should that be faster. `models` has a row per model: bytes, latency_ms (median, one image).
    """
    low, high = ratio
    size = models["bytes"][rule.second] / models["bytes"][rule.first]
    objections = _objections(rule, size, ratio, judged)
    if not objections:
        reason = (
            f"{rule.second} has {size:.0%} of {rule.first}'s bytes, takes {low:.2f} to {high:.2f} of its time for one "
            f"image, and a loss of more than {rule.margin} macro-F1 is excluded"
        )
        return {"ship": rule.second, "reason": reason}
    sentences = [f"{rule.second} {objections[0]}", *(f"It {objection}" for objection in objections[1:])]
    ship = str(models.loc[models.index.intersection([rule.first, "pytorch"]), "latency_ms"].idxmin())
    if ship != rule.first:
        sentences.append(f"{ship} is faster than {rule.first}")
    return {"ship": ship, "reason": ". ".join(sentences)}


def _objections(rule: Rule, size: float, ratio: tuple[float, float], judged: dict[str, dict]) -> list[str]:
    """Say what speaks against the second model: losses that are shown, then what is not excluded."""
    low, high = ratio
    times = f"one image takes {low:.2f} to {high:.2f} times as long as with {rule.first}"
    lost, possible = _macro_f1_losses(rule, judged)
    lost_recall, possible_recall = _recall_losses(rule, judged)
    objections = [f"loses {' and '.join(losses)}" for losses in (lost, lost_recall) if losses]
    if low > 1 and high > NOT_SLOWER:
        objections.append(f"is slower: {times}")
    if size >= 1:
        objections.append(f"is not smaller: it has {size:.0%} of {rule.first}'s bytes")
    if possible:
        objections.append(f"may lose {' and '.join(possible)}, where {rule.margin} is allowed")
    if possible_recall:
        objections.append(f"may lose {' and '.join(possible_recall)}, where {rule.minority_margin:.0%} is allowed")
    if low <= 1 and high > NOT_SLOWER:
        objections.append(f"may be slower: {times}, where {NOT_SLOWER} is allowed")
    return objections


def _macro_f1_losses(rule: Rule, judged: dict[str, dict]) -> tuple[list[str], list[str]]:
    """List the losses of macro-F1 that are shown, and those beyond the margin that are not excluded."""
    lost, possible = [], []
    for where, pair in judged.items():
        low, high = pair["macro_f1_delta_ci95"]
        if low < -rule.margin and high < 0:
            lost.append(f"{-high:.3f} to {-low:.3f} macro-F1 {where}")
        elif low < -rule.margin:
            possible.append(f"up to {-low:.3f} macro-F1 {where} ({pair['images']} images)")
    return lost, possible


def _recall_losses(rule: Rule, judged: dict[str, dict]) -> tuple[list[str], list[str]]:
    """List, for the minority class that loses most, the losses of recall that are seen, and those not excluded."""
    lost, possible = [], []
    for where, pair in judged.items():
        seen, room = {}, {}
        for name in rule.minority:
            difference, low, _ = pair["recall_delta"][name]
            if -difference > rule.margin:
                seen[name] = -difference
            elif -low > rule.minority_margin:
                room[name] = -low
        if seen:
            lost.append(f"{_largest(seen, '.1%')} {where}")
        if room:
            possible.append(f"up to {_largest(room, '.0%')} {where} ({pair['images']} images)")
    return lost, possible


def _largest(losses: dict[str, float], precision: str) -> str:
    """Name the class that loses most, and say how many lose too much beside it."""
    name = max(losses, key=losses.get)
    others = f" (and {len(losses) - 1} more)" if len(losses) > 1 else ""
    return f"{losses[name]:{precision}} of {name}'s recall{others}"
