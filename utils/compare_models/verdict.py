"""The verdict: which file to ship, from the numbers alone."""

import math
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


def decide(rule: Rule, models: pd.DataFrame, ratio: tuple[float, float], judged: dict[str, dict]) -> dict[str, object]:
    """Say which file to ship and why; the reason is whole sentences but for the last full stop, the strongest first.

    The second model replaces the first only if it is smaller *and* not slower *and* no worse, and it has to show it:
    the interval of its latency `ratio` to the first must not reach beyond `NOT_SLOWER`; in each of `judged` (where →
    what `compare_answers` says) a loss of more than `margin` macro-F1 must be excluded; no minority class may be seen
    to lose more than `margin` of its recall, nor leave room for a loss of more than `minority_margin`. Otherwise the
    first ships, or PyTorch, should that be faster. `models` has a row per model: bytes, latency_ms (median, one image).

    → ship: a row of `models`; reason; outcome: 'ship', 'not shown' where nothing is shown against the second model, or
    'do not ship' where it is worse, larger or slower; turning_margin: the `margin` from which on it ships, None where
    no margin would do.
    """
    size = models["bytes"][rule.second] / models["bytes"][rule.first]
    turning = _turning_margin(rule, size, ratio, judged)
    faults, doubts = _faults(rule, size, ratio, judged), _doubts(rule, ratio, judged)
    if not faults and not doubts:
        reason = ". ".join(_praise(rule, size, ratio, judged))
        return {"ship": rule.second, "reason": reason, "outcome": "ship", "turning_margin": turning}
    sentences = [f"It {fault}" for fault in faults] + [doubt[0].upper() + doubt[1:] for doubt in doubts]
    sentences[0] = f"{rule.second} {faults[0] if faults else f'{_appearance(rule, judged)}, not shown: {doubts[0]}'}"
    if turning:
        sentences.append(f"It would ship if a loss of {turning:.4g} were allowed")
    ship = str(models.loc[models.index.intersection([rule.first, "pytorch"]), "latency_ms"].idxmin())
    if ship != rule.first:
        sentences.append(f"{ship} is faster than {rule.first}")
    outcome = "do not ship" if faults else "not shown"
    return {"ship": ship, "reason": ". ".join(sentences), "outcome": outcome, "turning_margin": turning}


def _round_up(loss: float) -> float:
    """Round a loss up to four digits: what is said to be excluded is, and a margin of this size is enough."""
    return math.ceil(loss * 1e4 - 1e-9) / 1e4


def _praise(rule: Rule, size: float, ratio: tuple[float, float], judged: dict[str, dict]) -> list[str]:
    """Say what speaks for the second model, and what this rests on."""
    bound, counted = (max(pair["macro_f1_loss"][name] for pair in judged.values()) for name in ("bound", "counted"))
    sentences = [
        f"{rule.second} is shown to be no worse: a loss above {_round_up(bound):.4g} macro-F1 is excluded, where "
        f"{rule.margin} is allowed",
        f"It has {size:.0%} of {rule.first}'s bytes and takes {ratio[0]:.2f} to {ratio[1]:.2f} of its time for one "
        "image",
    ]
    if counted > rule.margin:
        sentences.append(
            "This takes the noise to be as these images show it; what a fault that none of them shows might cost is "
            f"bounded only by {_round_up(counted):.4g}"
        )
    return sentences


def _faults(rule: Rule, size: float, ratio: tuple[float, float], judged: dict[str, dict]) -> list[str]:
    """Say in what the second model is shown to be worse, slower or larger."""
    losses, recall_losses = _macro_f1_losses(rule, judged)[0], _recall_losses(rule, judged)[0]
    faults = [f"loses {' and '.join(parts)}" for parts in (losses, recall_losses) if parts]
    if ratio[0] > 1 and ratio[1] > NOT_SLOWER:
        faults.append(f"is slower: {_times(rule, ratio)}")
    if size >= 1:
        faults.append(f"is not smaller: it has {size:.0%} of {rule.first}'s bytes")
    return faults


def _doubts(rule: Rule, ratio: tuple[float, float], judged: dict[str, dict]) -> list[str]:
    """Say what is not excluded."""
    losses, recall_losses = _macro_f1_losses(rule, judged)[1], _recall_losses(rule, judged)[1]
    doubts = []
    if losses:
        more = _more_images(rule, judged)
        enough = f"; about {more} more images would do" if more else ""
        doubts.append(f"only a loss {' and '.join(losses)} is excluded, where {rule.margin} is allowed{enough}")
    if recall_losses:
        doubts.append(
            f"only a loss {' and '.join(recall_losses)} is excluded, where {rule.minority_margin:.0%} is allowed"
        )
    if ratio[0] <= 1 and ratio[1] > NOT_SLOWER:
        doubts.append(f"{_times(rule, ratio)}, where {NOT_SLOWER} is allowed")
    return doubts


def _appearance(rule: Rule, judged: dict[str, dict]) -> str:
    """Say how the second model looks, where nothing is shown against it."""
    return "looks as good" if all(-pair["macro_f1_delta"] <= rule.margin for pair in judged.values()) else "looks worse"


def _times(rule: Rule, ratio: tuple[float, float]) -> str:
    return f"one image takes {ratio[0]:.2f} to {ratio[1]:.2f} times as long as with {rule.first}"


def _more_images(rule: Rule, judged: dict[str, dict]) -> int:
    """Estimate how many more images would exclude the loss: the bound shrinks as their number grows.

    0 where more would not help, as the loss that is seen is too large by itself.
    """
    if any(-pair["macro_f1_delta"] > rule.margin for pair in judged.values()):
        return 0
    return max(
        math.ceil(pair["images"] * (pair["macro_f1_loss"]["bound"] / rule.margin - 1)) for pair in judged.values()
    )


def _turning_margin(rule: Rule, size: float, ratio: tuple[float, float], judged: dict[str, dict]) -> float | None:
    """Find the smallest margin with which the second model ships; None if something else keeps it back."""
    all_allowed = rule._replace(margin=1)  # which leaves what a minority may lose unseen
    if size >= 1 or ratio[1] > NOT_SLOWER or _recall_losses(all_allowed, judged)[1]:
        return None
    losses = [pair["macro_f1_loss"]["bound"] for pair in judged.values()]
    seen = [-pair["recall_delta"][name][0] for pair in judged.values() for name in rule.minority]
    return _round_up(max(losses + seen))


def _macro_f1_losses(rule: Rule, judged: dict[str, dict]) -> tuple[list[str], list[str]]:
    """List the losses of macro-F1 that are shown, and those beyond the margin that are not excluded."""
    lost, possible = [], []
    for where, pair in judged.items():
        low, high = pair["macro_f1_delta_ci95"]
        bound = pair["macro_f1_loss"]["bound"]
        if bound > rule.margin and high < 0:
            lost.append(f"{-high:.3f} to {-low:.3f} macro-F1 {where}")
        elif bound > rule.margin:
            possible.append(f"above {_round_up(bound):.4g} macro-F1 {where} ({pair['images']} images)")
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
            possible.append(f"above {_largest(room, '.0%')} {where} ({pair['images']} images)")
    return lost, possible


def _largest(losses: dict[str, float], precision: str) -> str:
    """Name the class that loses most, and say how many lose too much beside it."""
    name = max(losses, key=losses.get)
    others = f" (and {len(losses) - 1} more)" if len(losses) > 1 else ""
    return f"{losses[name]:{precision}} of {name}'s recall{others}"
