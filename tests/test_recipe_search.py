"""The search for a recipe: what is scored, chosen, and said about the choice."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
from nets import calibration_set, spoil

from bench.notebooks import define
from utils.onnx_quant.recipe_search import (
    ScoringSet,
    choose,
    describe_choice,
    rank_sensitivity,
    score,
    search_recipe,
    sqnr_db,
    time_models,
    try_draws,
    within_budget,
)
from utils.onnx_quant.recipes import Recipe, candidate_recipes, type_recipes

IMAGES = np.random.default_rng(0).normal(size=(22, 3, 16, 16)).astype(np.float32)
X86 = {"architecture": "x86_64", "vnni": False}
GENEROUS = {"agreement": 0.0, "macro_f1": 1.0, "worst_recall": 1.0}
IMPOSSIBLE = {"agreement": 1.1, "macro_f1": 0.0, "worst_recall": 0.0}
(quantize,) = define("onnx_quant", "quantize")


@pytest.fixture(scope="module")
def coarse(net, tmp_path_factory):
    return spoil(net, tmp_path_factory.mktemp("coarse") / "net.onnx", "w3")


def scoring_set(path) -> ScoringSet:
    labels = np.arange(len(IMAGES)) % 3
    return ScoringSet(path, path, IMAGES, labels, np.arange(len(IMAGES)) < 5)


def quantize_by(path):
    return partial(quantize, path, calibration_set(path, IMAGES))


# --- the choice

BUDGET = {"agreement": 0.99, "macro_f1": 0.005, "worst_recall": 0.01}
FP32 = {"macro_f1": 0.95, "worst_recall": 0.9}


def table(**rows) -> pd.DataFrame:
    columns = ["latency_ms", "sqnr_db", "agreement", "macro_f1", "worst_recall"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns, dtype=float)


def choose_from(rows: pd.DataFrame) -> str:
    return choose(rows, within_budget(rows, FP32, BUDGET))


def test_choice_is_the_fastest_within_the_budget():
    rows = table(
        slow=(2.0, 40, 1, 0.95, 0.9),
        fast=(1.0, 20, 0.99, 0.945, 0.89),
        wrong=(0.5, 15, 0.98, 0.95, 0.9),
        lossy=(0.5, 15, 1, 0.94, 0.9),
        unfair=(0.5, 15, 1, 0.95, 0.88),
    )
    within = within_budget(rows, FP32, BUDGET)
    assert within.to_dict() == {"slow": True, "fast": True, "wrong": False, "lossy": False, "unfair": False}
    assert choose(rows, within) == "fast"


def test_among_equals_in_speed_the_nearest_to_fp32_wins_and_the_simplest_of_those():
    rows = table(simple=(1.04, 29.5, 1, 1, 1), elaborate=(1.0, 30.0, 1, 1, 1), coarse=(1.0, 20.0, 1, 1, 1))
    assert choose_from(rows) == "simple"
    assert choose_from(rows.drop("simple")) == "elaborate"
    rows.loc["simple", "latency_ms"] = 1.2
    assert choose_from(rows) == "elaborate"


def test_without_any_candidate_in_the_budget_most_of_fp32s_answers_count_and_then_the_sqnr():
    rows = table(
        fast=(1.0, 10, 0.5, 0.5, 0.5),
        near=(1.0, 30, 0.5, 0.6, 0.5),
        coarse=(1.0, 15, 0.6, 0.6, 0.5),
        faithful=(9.0, 20, 0.6, 0.6, 0.5),
    )
    assert not within_budget(rows, FP32, BUDGET).any()
    assert choose_from(rows) == "faithful"
    assert choose_from(rows.drop("faithful")) == "coarse"
    assert choose_from(rows.drop(["faithful", "coarse"])) == "near"


@pytest.mark.parametrize(
    ("latency", "within", "stage", "said"),
    [
        (0.5, True, 1, {"takes 0.50 of fp32's time", "gives 98.0% of its answers", "20.0 dB", "after its first stage"}),
        (1.5, True, 2, {"takes 1.50 of fp32's time", "fp32 is faster"}),
        (0.5, False, 2, {"No candidate is within the budget"}),
    ],
)
def test_choice_is_described(latency, within, stage, said):
    rows = table(U8S8=(latency, 20, 0.98, 0.95, 0.9), fp32=(1.0, 99, 1, 0.95, 0.9))
    text = describe_choice(rows.loc["U8S8"], rows.loc["fp32"], within, stage)
    possible = {"after its first stage", "fp32 is faster", "No candidate is within the budget"}
    assert text.startswith("**U8S8**") and all(part in text for part in said)
    assert not any(part in text for part in possible - said)


def test_score_is_perfect_for_the_same_logits_and_counts_every_class():
    logits = np.eye(3)[[0, 1, 2, 2]] * 5.0
    perfect = score(np.array([0, 1, 2, 2]), logits, logits)
    assert (perfect["agreement"], perfect["macro_f1"], perfect["worst_recall"]) == (1, 1, 1)
    other = score(np.array([0, 1, 2, 2]), logits, logits[[0, 1, 2, 1]])
    assert (other["agreement"], other["worst_recall"]) == (0.75, 0.5)
    assert sqnr_db(logits, logits * 1.1) == pytest.approx(20)


# --- the search


def test_search_ends_after_the_first_stage_if_a_candidate_keeps_the_answers(net):
    found = search_recipe(quantize_by(net), X86, scoring_set(net), GENEROUS)
    rows = found["rows"]
    assert [row["recipe"] for row in rows] == ["fp32", *(recipe.name for recipe in candidate_recipes(X86, net))]
    assert (found["stage"], found["sensitivity"]) == (1, {})
    assert rows[0]["agreement"] == 1
    assert rows[0]["valid_macro_f1"] != rows[0]["macro_f1"]
    assert all(row["latency_ms"] > 0 and row["bytes"] > 0 for row in rows)
    assert max(row["sqnr_db"] for row in rows[1:]) < rows[0]["sqnr_db"]


@pytest.mark.parametrize(("budget", "everything"), [(IMPOSSIBLE, False), (GENEROUS, True)])
def test_second_stage_is_for_want_of_a_candidate_or_on_demand(net, budget, everything):
    found = search_recipe(quantize_by(net), X86, scoring_set(net), budget, everything)
    ranked = list(found["sensitivity"])
    assert found["stage"] == 2 and ranked
    recipes = candidate_recipes(X86, net, ranked)
    assert [row["recipe"] for row in found["rows"]] == ["fp32", *(recipe.name for recipe in recipes)]
    assert len(recipes) >= len(candidate_recipes(X86, net)) + 2
    assert all(row["latency_ms"] > 0 for row in found["rows"])


def test_layer_that_int8_spoils_is_named_first(coarse):
    recipe = Recipe(type_recipes(X86)[0].activation_type, per_channel=False, reduce_range=True)
    gains = rank_sensitivity(quantize_by(coarse), recipe, scoring_set(coarse))
    assert gains.index[0] == "conv3"
    assert set(gains.index) == {"conv3", "gemm"}, "the better one of two groups was to be looked at"


def test_biases_are_left_alone_while_layers_are_ranked(coarse):
    """Bias correction would hide the differences."""
    tried = []

    def note(target, recipe) -> None:
        tried.append(recipe)
        quantize_by(coarse)(target, recipe)

    rank_sensitivity(note, type_recipes(X86)[0], scoring_set(coarse))
    assert not any(recipe.correct_biases for recipe in tried)
    assert len(tried) == 2 + 1 + 2  # groups, nothing in float, layers of the best group


def test_timing_names_every_model(net):
    image = np.zeros((1, 3, 16, 16), np.float32)
    times = time_models({"a": net, "b": net}, image, rounds=2)
    assert set(times) == {"a", "b"} and min(times.values()) > 0


# --- how many images


def test_draws_are_repeatable_and_end_with_all_images(net, tmp_path):
    candidates, judge = calibration_set(net, IMAGES[:16]), ScoringSet(net, net, IMAGES[16:], None, None)
    quantize_drawn = partial(quantize, net, recipe=type_recipes(X86)[0]._replace(correct_biases=False))
    whole = tmp_path / "whole.onnx"
    quantize_drawn(candidates, whole)
    first, second = (try_draws(quantize_drawn, candidates, whole, judge, (4, 8, 99), draws=2) for _ in range(2))
    assert [row["images"] for row in first] == [4, 4, 8, 8, 16]
    assert first == second
    assert len({row["sqnr_db"] for row in first}) > 2
