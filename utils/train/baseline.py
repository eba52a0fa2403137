"""The plain baseline: logistic regression on the last layer's frozen features, beside the recipe on the same folds."""

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

from utils.cross_validation import OutOfFold, fit_and_predict, fold_parts
from utils.features import compact, last_block
from utils.intervals import macro_f1_difference_interval, repeated_score
from utils.metrics import macro_f1
from utils.train.feature_table import FeatureTable
from utils.train.scores import report_score


def report_scores(oof: OutOfFold, table: FeatureTable, index: pd.DataFrame, fold_of: np.ndarray) -> dict:
    """Score the recipe, out of fold, and the baseline, trained on the same images of the same folds (R, N).

    Returns for the report `oof_macro_f1` with its interval, `trained_on`, the share of images that a network was
    trained on, and `baseline`: `macro_f1` and `ci95`, `chance`, and the `difference` of the recipe's score to the
    baseline's, paired, with its interval by group (`difference_ci95`).
    """
    rows = table.plain(index)
    features = compact(last_block(rows.features, rows.sizes))
    probe = LogisticRegression(class_weight="balanced", max_iter=1000)
    jobs, places = [], []
    for repeat, folds in enumerate(fold_of):
        for test, valid in fold_parts(index["class"], folds):
            jobs.append((probe, np.flatnonzero(~test & ~valid), np.flatnonzero(test)))
            places.append((repeat, test))
    probabilities = np.zeros(oof.logits.shape)
    found = fit_and_predict(features, rows.labels, rows.groups, jobs, "baseline")
    for place, predicted in zip(places, found, strict=True):
        probabilities[place] = predicted
    scored = repeated_score(probabilities, oof.labels, rows.groups)
    difference, low, high = difference_of(probabilities, oof.logits, oof.labels, rows.groups)
    recipe = repeated_score(oof.logits, oof.labels, rows.groups)
    found = {
        "macro_f1": scored["score"],
        "ci95": [scored["low"], scored["high"]],
        "chance": 1 / probabilities.shape[2],
        "difference": difference,
        "difference_ci95": [low, high],
    }
    return report_score("oof", recipe) | {"trained_on": oof.trained_on, "baseline": found}


def difference_of(
    first: np.ndarray, second: np.ndarray, labels: np.ndarray, groups: np.ndarray
) -> tuple[float, float, float]:
    """Macro-F1 of `second` less that of `first`, logits or probabilities (R, N, C), with its 95 % interval by group.

    Means over repeats, as in `repeated_score`.
    """
    num_classes, found = first.shape[2], []
    for before, after in zip(first.argmax(axis=2), second.argmax(axis=2), strict=True):
        difference = macro_f1(labels, after, num_classes) - macro_f1(labels, before, num_classes)
        found.append((difference, *macro_f1_difference_interval(labels, before, after, num_classes, groups)))
    return tuple(float(value) for value in np.mean(found, axis=0))


def tabulate(section: dict) -> pd.DataFrame:
    """Show what `report_scores` found; → a row each: macro-F1, low, high."""
    found = section["baseline"]
    rows = {
        "this recipe, out of fold": [section["oof_macro_f1"], *section["oof_macro_f1_ci95"]],
        "plain baseline": [found["macro_f1"], *found["ci95"]],
        "chance": [found["chance"], np.nan, np.nan],
        "recipe less baseline": [found["difference"], *found["difference_ci95"]],
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["macro-F1", "low", "high"])
