"""The search for a recipe: what is scored, chosen, and said about the choice."""

import numpy as np
import pandas as pd
import pytest
import torch
from nets import calibration_set

from bench.notebooks import define
from utils.onnx_quant.candidates import (
    ScoringSet,
    choose,
    load_sample,
    score,
    score_calibrations,
    sqnr_db,
    time_models,
    try_recipes,
    within_budget,
)
from utils.onnx_quant.recipes import candidate_recipes

IMAGES = np.random.default_rng(0).normal(size=(22, 3, 16, 16)).astype(np.float32)
X86 = {"architecture": "x86_64", "vnni": False}
(quantize,) = define("onnx_quant", "quantize")


def scoring_set(path) -> ScoringSet:
    index = pd.DataFrame({"sha256": [str(number) for number in range(22)], "split": ["valid"] * 5 + ["train"] * 17})
    return ScoringSet(path, index, IMAGES, np.arange(len(IMAGES)) % 3)


# --- the choice

BUDGET = {"agreement": 0.99, "macro_f1": 0.005, "worst_recall": 0.01}
FP32 = (3.0, 99, 1, 0.95, 0.9)


def table(**rows) -> pd.DataFrame:
    columns = ["latency_ms", "sqnr_db", "agreement", "macro_f1", "worst_recall"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns, dtype=float)


def choose_from(rows: pd.DataFrame) -> str:
    whole = pd.concat([table(fp32=FP32), rows]).assign(reference=False)
    return choose(whole.assign(within_budget=within_budget(whole, BUDGET)))


def test_choice_is_the_fastest_within_the_budget():
    rows = table(
        slow=(2.0, 40, 1, 0.95, 0.9),
        fast=(1.0, 20, 0.99, 0.945, 0.89),
        wrong=(0.5, 15, 0.98, 0.95, 0.9),
        lossy=(0.5, 15, 1, 0.94, 0.9),
        unfair=(0.5, 15, 1, 0.95, 0.88),
    )
    within = within_budget(pd.concat([table(fp32=FP32), rows]), BUDGET).drop("fp32")
    assert within.to_dict() == {"slow": True, "fast": True, "wrong": False, "lossy": False, "unfair": False}
    assert choose_from(rows) == "fast"


def test_among_equals_in_speed_the_nearest_to_fp32_wins_and_the_simplest_of_those():
    rows = table(simple=(1.04, 29.5, 1, 1, 1), elaborate=(1.0, 30.0, 1, 1, 1), coarse=(1.0, 20.0, 1, 1, 1))
    assert choose_from(rows) == "simple"
    assert choose_from(rows.drop("simple")) == "elaborate"
    rows.loc["simple", "latency_ms"] = 1.2
    assert choose_from(rows) == "elaborate"


def test_speed_does_not_count_where_it_was_not_measured_on_what_the_file_is_for():
    rows = table(fast=(0.5, 20, 1, 1, 1), near=(9.0, 30, 1, 1, 1), lossy=(9.0, 40, 0.9, 1, 1))
    whole = pd.concat([table(fp32=FP32), rows]).assign(reference=False)
    whole["within_budget"] = within_budget(whole, BUDGET)
    assert (choose(whole), choose(whole, timed=False)) == ("fast", "near")


def test_a_reference_is_never_chosen():
    rows = table(slow=(2.0, 20, 1, 0.95, 0.9), reference=(1.0, 40, 1, 0.95, 0.9))
    whole = pd.concat([table(fp32=FP32), rows]).assign(within_budget=True, reference=[False, False, True])
    assert choose(whole) == "slow"


def test_without_any_candidate_in_the_budget_most_of_fp32s_answers_count_and_then_the_sqnr():
    rows = table(
        fast=(1.0, 10, 0.5, 0.5, 0.5),
        near=(1.0, 30, 0.5, 0.6, 0.5),
        coarse=(1.0, 15, 0.6, 0.6, 0.5),
        faithful=(9.0, 20, 0.6, 0.6, 0.5),
    )
    assert choose_from(rows) == "faithful"
    assert choose_from(rows.drop("faithful")) == "coarse"
    assert choose_from(rows.drop(["faithful", "coarse"])) == "near"


def test_score_is_perfect_for_the_same_logits_and_counts_every_class():
    logits = np.eye(3)[[0, 1, 2, 2]] * 5.0
    perfect = score(np.array([0, 1, 2, 2]), logits, logits)
    assert (perfect["agreement"], perfect["macro_f1"], perfect["worst_recall"]) == (1, 1, 1)
    other = score(np.array([0, 1, 2, 2]), logits, logits[[0, 1, 2, 1]])
    assert (other["agreement"], other["worst_recall"]) == (0.75, 0.5)
    assert sqnr_db(logits, logits * 1.1) == pytest.approx(20)


# --- the search


def test_every_candidate_is_written_scored_and_timed_once(net, tmp_path):
    recipes, quantized = candidate_recipes("here", X86, net), []

    def quantize_and_count(prepared_path, calibrating, target, recipe) -> None:
        quantized.append(recipe)
        quantize(prepared_path, calibrating, target, recipe)

    images = calibration_set(net, IMAGES)
    images.index["sha256"] = "known"
    tables = [
        try_recipes(recipes, quantize_and_count, images, scoring_set(net), tmp_path / "cache.json") for _ in range(2)
    ]
    pd.testing.assert_frame_equal(*tables)
    assert sorted(quantized, key=str) == sorted(recipes, key=str), "the second time they are remembered"
    rows = tables[0]
    assert list(rows["recipe"]) == ["fp32", *(recipe.name for recipe in recipes)]
    assert rows["agreement"][0] == 1
    assert rows["valid_macro_f1"][0] != rows["macro_f1"][0]
    assert (rows[["latency_ms", "bytes"]] > 0).all(axis=None)
    assert rows["sqnr_db"][1:].max() < rows["sqnr_db"][0]


def test_calibrations_are_scored_once(net, tmp_path):
    quantized = []

    def quantize_and_count(prepared_path, calibrating, target, recipe) -> None:
        quantized.append(len(calibrating))
        quantize(prepared_path, calibrating, target, recipe)

    images = calibration_set(net, IMAGES)
    images.index["sha256"] = [str(number) for number in range(len(IMAGES))]
    sets = {"few": images.part(np.arange(4)), "all": images}
    (recipe, *_) = candidate_recipes("here", X86, net)
    parts = sets, quantize_and_count, recipe, scoring_set(net), tmp_path / "cache.json"
    found, again = score_calibrations(*parts), score_calibrations(*parts)
    assert found == again and sorted(quantized) == [4, 22], "the second time they are remembered"
    assert found["few"]["sqnr_db"] != found["all"]["sqnr_db"]


def test_a_part_of_the_sample_is_scored_alone(net):
    scoring = scoring_set(net)
    assert (scoring.part("valid").images == IMAGES[:5]).all() and len(scoring.part("valid", "train").labels) == 22
    assert scoring.part("valid").score(net)["agreement"] == 1


def test_sample_is_drawn_where_there_are_many(net):
    index = scoring_set(net).index

    class Dataset:
        def __init__(self, rows):
            self.rows = rows
            self.labels = [0] * len(rows)

        def stack(self):
            return torch.from_numpy(IMAGES[self.rows.index])

    few = load_sample(net, Dataset, index, 7)
    assert len(few.index) == 7 and list(few.index.index) == sorted(few.index.index)
    assert (few.images == IMAGES[few.index.index]).all()
    assert len(load_sample(net, Dataset, index, 99).labels) == 22


def test_timing_names_every_model(net):
    image = np.zeros((1, 3, 16, 16), np.float32)
    times = time_models({"a": net, "b": net}, image)
    assert set(times) == {"a", "b"} and min(times.values()) > 0
