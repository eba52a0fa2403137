"""Scores of what was trained: out of fold, beside a plain baseline, on the test part, and class by class."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_fscore_support

from utils.cross_validation import LINEAR, OutOfFold, fit_and_predict, fold_parts
from utils.features import compact, last_block
from utils.intervals import macro_f1_interval, repeated_difference, repeated_score, share_interval
from utils.metrics import macro_f1, prediction_table
from utils.plots import most_confused
from utils.train.feature_table import FeatureTable


def report_out_of_fold(oof: OutOfFold, table: FeatureTable, index: pd.DataFrame, fold_of: np.ndarray) -> dict:
    """Score the recipe, out of fold, and a plain baseline, trained on the same images of the same folds (R, N).

    The baseline is a logistic regression on the frozen features that the network's own last layer sees. Returns for the
    report `oof_macro_f1` with its interval, `trained_on`, the share of images that a network was trained on, and
    `baseline`: `macro_f1` and `ci95`, `chance`, and the `difference` of the recipe's score to the baseline's, paired,
    with its interval by group (`difference_ci95`).
    """
    rows = table.of(index)
    probabilities = predict_baseline(rows, index["class"], fold_of)
    recipe = repeated_score(oof.logits, oof.labels, rows.groups)
    baseline = repeated_score(probabilities, oof.labels, rows.groups)
    difference, low, high = repeated_difference(probabilities, oof.logits, oof.labels, rows.groups)
    return {
        "oof_macro_f1": recipe["score"],
        "oof_macro_f1_ci95": [recipe["low"], recipe["high"]],
        "trained_on": oof.trained_on,
        "baseline": {
            "macro_f1": baseline["score"],
            "ci95": [baseline["low"], baseline["high"]],
            "chance": 1 / probabilities.shape[2],
            "difference": difference,
            "difference_ci95": [low, high],
        },
    }


def predict_baseline(rows: FeatureTable, classes: pd.Series, fold_of: np.ndarray) -> np.ndarray:
    """Predict images as they are by the plain baseline, which trains on what a network of `fold_of` (R, N) trains on.

    Neither the fold that is predicted nor the one that chooses the epoch is among it. Returns probabilities (R, N, C).
    """
    features = compact(last_block(rows.features, rows.sizes))
    jobs = {
        repeat: [
            (LINEAR, np.flatnonzero(~test & ~valid), np.flatnonzero(test)) for test, valid in fold_parts(classes, row)
        ]
        for repeat, row in enumerate(fold_of)
    }
    return np.stack(list(fit_and_predict(features, rows.labels, rows.groups, jobs, "baseline").values()))


def tabulate(section: dict) -> pd.DataFrame:
    """Show what `report_out_of_fold` found; → a row each: macro-F1, low, high."""
    found = section["baseline"]
    rows = {
        "this recipe, out of fold": [section["oof_macro_f1"], *section["oof_macro_f1_ci95"]],
        "plain baseline": [found["macro_f1"], *found["ci95"]],
        "chance": [found["chance"], np.nan, np.nan],
        "recipe less baseline": [found["difference"], *found["difference_ci95"]],
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["macro-F1", "low", "high"])


def report_test(table: pd.DataFrame, classes: Sequence[str]) -> dict:
    """Score the test part's `ranked_predictions` for the report: macro-F1, its interval by group, and each class."""
    labels, predictions = (table[column].map(list(classes).index).to_numpy() for column in ("class", "prediction"))
    interval = macro_f1_interval(labels, predictions, len(classes), table["group"].to_numpy())
    by_class = per_class(table, classes)[["precision", "recall", "f1"]]
    return {
        "test_macro_f1": macro_f1(labels, predictions, len(classes)),
        "test_macro_f1_ci95": list(interval),
        "per_class": by_class.to_dict("index"),
    }


def ranked_predictions(part: pd.DataFrame, probabilities: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """Make a `prediction_table` with titles, the most telling first: the surest mistakes, then what was least sure."""
    table = prediction_table(part, probabilities, classes)
    table["title"] = table["class"] + ": “" + table["prediction"] + "” " + table["probability"].map("{:.0%}".format)
    doubt = np.where(table["correct"], table["probability"], -table["probability"])
    return table.iloc[np.lexsort((doubt, table["correct"]))]


def confusion_table(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Count who is taken for whom in a `prediction_table`: a row per true class, a column per predicted one.

    Of many classes, the most confused ones.
    """
    counts = pd.crosstab(table["class"], table["prediction"], rownames=["true class"], colnames=["predicted class"])
    return most_confused(counts.reindex(index=classes, columns=classes, fill_value=0))


def share_right(predictions: pd.DataFrame) -> list[float]:
    """Give the share of a `prediction_table` that is right, and the ends of its 95 % interval by group."""
    right = predictions["correct"].to_numpy()
    return [float(right.mean()), *share_interval(right, predictions["group"].to_numpy())]


def per_class(predictions: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Score each class of a `prediction_table`: precision, recall, f1, images, groups, and 95 % intervals by group."""
    truth, predicted = predictions["class"], predictions["prediction"]
    scores = precision_recall_fscore_support(truth, predicted, labels=classes, zero_division=0)
    table = pd.DataFrame(np.array(scores).T, classes, ["precision", "recall", "f1", "images"])
    table["groups"] = predictions.groupby("class")["group"].nunique().reindex(classes, fill_value=0)
    for (kind, column), name in product({"recall": truth, "precision": predicted}.items(), classes):
        own = predictions[column == name]
        ends = share_interval(own["correct"].to_numpy(), own["group"].to_numpy()) if len(own) else (0, 1)
        table.loc[name, [f"{kind} low", f"{kind} high"]] = ends
    return table
