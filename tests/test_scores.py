"""Scores: the plain baseline on the recipe's own folds, and tables of predictions by hand."""

import numpy as np
import pandas as pd
import pytest

from utils.cross_validation import OutOfFold, fold_parts, plan_folds
from utils.train import scores
from utils.train.feature_table import FeatureTable
from utils.train.scores import confusion_table, per_class, ranked_predictions

CLASSES = ["apple", "cherry", "tomato"]


@pytest.fixture(scope="module")
def known() -> tuple[FeatureTable, pd.DataFrame, np.ndarray]:
    """Three clouds, two images a group, in features of an inner block that is noise and a last one; two repeats."""
    generator, labels = np.random.default_rng(0), np.repeat(np.arange(3), 40)
    last = generator.normal(size=(3, 20))[labels] + 0.7 * generator.normal(size=(120, 20))
    features = np.hstack([100 * generator.normal(size=(120, 50)), last]).astype(np.float32)
    index = pd.DataFrame({"path": np.arange(120).astype(str), "class": np.array(list("abc"))[labels]})
    index["group"] = np.arange(120) // 2
    table = FeatureTable(features, index["path"].to_numpy(), labels, index["group"].to_numpy(), sizes=[50, 20])
    return table, index, plan_folds(index, folds=5, repeats=2)


def recipe(labels: np.ndarray, wrong: float) -> OutOfFold:
    """Answer rightly but for a share of the images."""
    generator = np.random.default_rng(1)
    logits = np.stack([np.eye(3)[np.where(generator.random(120) < wrong, (labels + 1) % 3, labels)] for _ in range(2)])
    return OutOfFold(logits, labels, [], 0.6)


@pytest.mark.parametrize("wrong", [0.3, 0.0])
def test_a_recipe_that_is_worse_than_the_baseline_is_so_beyond_doubt(known, wrong):
    table, index, fold_of = known
    section = scores.report_out_of_fold(recipe(table.labels, wrong), table, index, fold_of)
    found = section["baseline"]
    low, high = found["difference_ci95"]
    assert found["macro_f1"] > 0.9, "the last block alone knows the classes"
    assert found["chance"] == pytest.approx(1 / 3) and found["ci95"][0] <= found["macro_f1"] <= found["ci95"][1]
    assert low <= found["difference"] <= high
    assert (high < 0) if wrong else (low < 0 <= found["difference"])
    assert section["oof_macro_f1"] == pytest.approx(1 - wrong, abs=0.1) and section["trained_on"] == 0.6
    rows = scores.tabulate(section)
    assert rows.index.tolist() == ["this recipe, out of fold", "plain baseline", "chance", "recipe less baseline"]
    assert rows.loc["recipe less baseline"].tolist() == [found["difference"], low, high]


def test_it_is_trained_on_what_the_recipe_was_trained_on(known, monkeypatch):
    """Neither the fold that is predicted nor the one that chooses the epoch."""
    table, index, fold_of = known
    jobs = []
    predict = scores.fit_and_predict

    def noted(features, labels, groups, given, name):
        jobs.extend(job for of_repeat in given.values() for job in of_repeat)
        return predict(features, labels, groups, given, name)

    monkeypatch.setattr(scores, "fit_and_predict", noted)
    scores.report_out_of_fold(recipe(table.labels, 0), table, index, fold_of)
    parts = [part for folds in fold_of for part in fold_parts(index["class"], folds)]
    for (_, train, test), (is_test, is_valid) in zip(jobs, parts, strict=True):
        assert (np.flatnonzero(is_test) == test).all() and (np.flatnonzero(~is_test & ~is_valid) == train).all()


def test_labels_that_mean_nothing_give_chance(known):
    """Rows of a group are alike: a group that is trained on and predicted would be known."""
    table, index, fold_of = known
    generator = np.random.default_rng(3)
    features = np.repeat(generator.normal(size=(60, 70)), 2, axis=0).astype(np.float32)
    labels = np.repeat(generator.permutation(np.arange(60) % 3), 2)
    random = table._replace(features=features, labels=labels)
    section = scores.report_out_of_fold(recipe(labels, 0.0), random, index, fold_of)
    assert section["baseline"]["macro_f1"] < 0.5


# --- tables of predictions, by hand


@pytest.fixture
def predictions() -> pd.DataFrame:
    """Two right predictions, of which one is unsure, and two mistakes; no image of a tomato."""
    part = pd.DataFrame({"path": list("abcd"), "class": ["apple", "apple", "cherry", "cherry"]}, index=[9, 5, 7, 2])
    part["group"] = list("wxyz")
    probabilities = np.array([[0.9, 0.1, 0.0], [0.4, 0.6, 0.0], [0.3, 0.7, 0.0], [0.1, 0.1, 0.8]])
    return ranked_predictions(part, probabilities, CLASSES)


def test_the_surest_mistakes_come_first_and_then_what_was_right_but_unsure(predictions):
    assert predictions["path"].tolist() == ["d", "b", "c", "a"] and predictions.index.tolist() == [2, 5, 7, 9]
    assert predictions["title"].tolist()[0] == "cherry: “tomato” 80%"


def test_all_classes_are_counted_with_or_without_images(predictions):
    assert confusion_table(predictions, CLASSES).to_numpy().tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_scores_of_classes_by_hand(predictions):
    table = per_class(predictions, CLASSES)
    assert table["images"].tolist() == [2, 2, 0]
    assert table["recall"].tolist() == [0.5, 0.5, 0] and table["precision"].tolist() == [1, 0.5, 0]
    assert table["f1"].tolist() == pytest.approx([2 / 3, 0.5, 0])
    assert (table["recall low"] <= table["recall"]).all() and (table["recall"] <= table["recall high"]).all()
    assert table.loc["tomato", ["recall low", "recall high"]].tolist() == [0, 1], "without images, anything is possible"
