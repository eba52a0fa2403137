"""Answers to the test part, by hand."""

import numpy as np
import pandas as pd
import pytest

from utils.train.scores import answer_table, confusion_table, per_class

CLASSES = ["apple", "cherry", "tomato"]


@pytest.fixture
def answers() -> pd.DataFrame:
    """Two right answers, of which one is unsure, and two mistakes; no image of a tomato."""
    part = pd.DataFrame({"path": list("abcd"), "class": ["apple", "apple", "cherry", "cherry"]}, index=[9, 5, 7, 2])
    probabilities = np.array([[0.9, 0.1, 0.0], [0.4, 0.6, 0.0], [0.3, 0.7, 0.0], [0.1, 0.1, 0.8]])
    return answer_table(part, probabilities, CLASSES)


def test_the_surest_mistakes_come_first_and_then_what_was_right_but_unsure(answers):
    assert answers["path"].tolist() == ["d", "b", "c", "a"] and answers.index.tolist() == [2, 5, 7, 9]
    assert answers["title"].tolist()[0] == "cherry: “tomato” 80%"


def test_all_classes_are_counted_with_or_without_images(answers):
    assert confusion_table(answers, CLASSES).to_numpy().tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_scores_of_classes_by_hand(answers):
    table = per_class(answers, CLASSES)
    assert table["images"].tolist() == [2, 2, 0]
    assert table["recall"].tolist() == [0.5, 0.5, 0] and table["precision"].tolist() == [1, 0.5, 0]
    assert table["f1"].tolist() == pytest.approx([2 / 3, 0.5, 0])
    assert (table["recall low"] <= table["recall"]).all() and (table["recall"] <= table["recall high"]).all()
    assert table.loc["tomato", ["recall low", "recall high"]].tolist() == [0, 1], "without images, anything is possible"
