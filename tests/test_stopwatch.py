"""The one stopwatch: all calls in every round, in another order each time; no time is asserted."""

import math
from functools import partial

import numpy as np
import pytest

from utils.stopwatch import median_interval, ratio, time_calls, visit


def test_every_call_is_visited_once_a_round_in_changing_order():
    order = []
    times = time_calls({name: partial(order.append, name) for name in "abc"}, range(20), visit_ms=1e-9)
    assert list(times) == ["a", "b", "c"] and all(found.shape == (20,) for found in times.values())
    visits = order[::2]  # each is one call that warms up and one that counts
    assert visits == order[1::2]
    rounds = {tuple(visits[place : place + 3]) for place in range(0, 60, 3)}
    assert len(rounds) > 1 and all(set(names) == {"a", "b", "c"} for names in rounds)


def test_the_first_call_warms_up_unless_the_caches_are_warm_and_calls_are_long():
    calls = []

    def call() -> None:
        calls.append(1)

    assert len(visit(call, visit_ms=0.001)) == len(calls) - 1
    calls.clear()
    assert len(visit(call, warm=True, visit_ms=0)) == len(calls) == 1


def test_a_ratio_pairs_rounds_whatever_the_machine_does_between_them():
    pace = np.random.default_rng(0).choice([1.0, 10.0], 24)
    assert ratio(2 * pace, pace) == (0.5, 0.5, 0.5)


def test_median_interval_equals_the_order_statistics_of_a_binomial():
    generator = np.random.default_rng(0)
    for count in (6, 9, 24, 25, 100):
        values = np.sort(generator.lognormal(size=count))
        tails = np.cumsum([math.comb(count, each) for each in range(count + 1)]) / 2**count  # P(values below ≤ each)
        rank = max(each for each in range(count // 2) if tails[each] <= 0.025)
        assert median_interval(values) == pytest.approx((values[rank], values[-rank - 1]), abs=1e-9)
