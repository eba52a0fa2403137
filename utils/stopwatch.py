"""The one stopwatch: calls are timed in turns, so that a busy moment of the machine hits all alike."""

import random
import time
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from utils.config import SEED

VISIT_MS = 10  # of calls in each visit, and at least one call
MAX_CALLS = 200  # in each visit
QUICK = 25  # percentile that stands for a visit: disturbances only ever add time


def time_calls(
    calls: dict[str, Callable[[], object]], rounds: Iterable[int], visit_ms: float = VISIT_MS
) -> dict[str, np.ndarray]:
    """Time calls side by side in this process; → ms of each call in each of the rounds (R,)."""
    generator = random.Random(SEED)
    visits = {name: partial(visit, call, visit_ms=visit_ms) for name, call in calls.items()}
    times = [time_round(visits, generator) for _ in rounds]
    return {name: np.array([np.percentile(found[name], QUICK) for found in times]) for name in calls}


def time_round(visits: dict[str, Callable[[], list[float]]], generator: random.Random) -> dict[str, list[float]]:
    """Make each visit once, in random order; → what each returned, in the order of `visits`."""
    found = {name: visits[name]() for name in generator.sample(list(visits), len(visits))}
    return {name: found[name] for name in visits}


def visit(call: Callable[[], object], warm: bool = False, visit_ms: float = VISIT_MS) -> list[float]:
    """Time a call again and again, after one that fills the caches; → ms of each.

    Where the caches are `warm` and one call takes as long as a visit, the first call counts too.
    """
    times = [milliseconds(call)]
    if not warm or times[0] < visit_ms:
        times = []
    while len(times) < MAX_CALLS and sum(times) < visit_ms:
        times.append(milliseconds(call))
    return times


def milliseconds(call: Callable[[], object]) -> float:
    """Time one call."""
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e3


def ratio(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Compare the times of two calls round by round (R,); → the median of second over first, and its 95 % interval."""
    ratios = second / first
    return float(np.median(ratios)), *median_interval(ratios)


def median_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of a median by order statistics (Conover 1999, section 3.2); the extremes where there are few."""
    from scipy.stats import quantile_test  # here, as a process in which a model is timed has to stay small

    low, high = quantile_test(values, p=0.5).confidence_interval(0.95)
    return float(np.min(values) if np.isnan(low) else low), float(np.max(values) if np.isnan(high) else high)
