"""Predictions of images: which are worth a look, who is taken for whom, and scores per class."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_fscore_support

from utils.intervals import macro_f1_interval, wilson_interval
from utils.metrics import macro_f1, prediction_table
from utils.plots import most_confused


def answer_table(part: pd.DataFrame, probabilities: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """Make a `prediction_table` with titles, the most telling first: the surest mistakes, then what was least sure."""
    table = prediction_table(part, probabilities, classes)
    table["title"] = table["class"] + ": “" + table["prediction"] + "” " + table["probability"].map("{:.0%}".format)
    doubt = np.where(table["correct"], table["probability"], -table["probability"])
    return table.iloc[np.lexsort((doubt, table["correct"]))]


def confusion_table(answers: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Count who is taken for whom in an `answer_table`: a row per true class, a column per predicted one.

    Of many classes, the most confused ones.
    """
    counts = pd.crosstab(answers["class"], answers["prediction"], rownames=["true class"], colnames=["predicted class"])
    return most_confused(counts.reindex(index=classes, columns=classes, fill_value=0))


def per_class(answers: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Score each class of an `answer_table`: precision, recall, f1, images, and Wilson's 95 % intervals."""
    truth, predicted = answers["class"], answers["prediction"]
    scores = precision_recall_fscore_support(truth, predicted, labels=classes, zero_division=0)
    table = pd.DataFrame(np.array(scores).T, classes, ["precision", "recall", "f1", "images"])
    for name in classes:
        hits = ((truth == name) & (predicted == name)).sum()
        table.loc[name, ["recall low", "recall high"]] = wilson_interval(hits, (truth == name).sum())
        table.loc[name, ["precision low", "precision high"]] = wilson_interval(hits, (predicted == name).sum())
    return table


def report_validation(metrics: dict) -> dict:
    """Shape what the best epoch reached in validation for the report."""
    return {"best_epoch": metrics["epoch"], "valid_macro_f1": metrics["valid_macro_f1"]}


def report_score(name: str, score: dict) -> dict:
    """Shape macro-F1 with its interval for the report: `name` is oof or test."""
    return {f"{name}_macro_f1": score["score"], f"{name}_macro_f1_ci95": [score["low"], score["high"]]}


def report_test(answers: pd.DataFrame, classes: Sequence[str]) -> dict:
    """Score an `answer_table` of the test part for the report: macro-F1 with its interval by group, and each class."""
    labels, predictions = (answers[column].map(list(classes).index).to_numpy() for column in ("class", "prediction"))
    low, high = macro_f1_interval(labels, predictions, len(classes), answers["group"].to_numpy())
    score = {"score": macro_f1(labels, predictions, len(classes)), "low": low, "high": high}
    by_class = per_class(answers, classes)[["precision", "recall", "f1"]]
    return report_score("test", score) | {"per_class": by_class.to_dict("index")}
