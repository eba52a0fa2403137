"""Answers to the test part: which are worth a look, who is taken for whom, and scores per class."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_fscore_support

from utils.intervals import wilson_interval
from utils.metrics import prediction_table


def answer_table(part: pd.DataFrame, probabilities: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """List what probabilities (N, C) answer to the images in `part`, rows of the table, the most telling first.

    Those are the surest mistakes, and then what was right but least sure. Columns: path, class, answer, probability,
    right, and a title that says all of it.
    """
    table = prediction_table(part, probabilities, classes)
    table = table.rename(columns={"prediction": "answer", "correct": "right"})
    table["title"] = table["class"] + ": “" + table["answer"] + "” " + table["probability"].map("{:.0%}".format)
    doubt = np.where(table["right"], table["probability"], -table["probability"])
    return table.iloc[np.lexsort((doubt, table["right"]))]


def confusion_table(answers: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Count who is taken for whom in an `answer_table`: a row per true class, a column per predicted one."""
    counts = pd.crosstab(answers["class"], answers["answer"], rownames=["true class"], colnames=["predicted class"])
    return counts.reindex(index=classes, columns=classes, fill_value=0)


def per_class(answers: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Score each class of an `answer_table`: precision, recall, f1, images, and Wilson's 95 % intervals."""
    truth, predicted = answers["class"], answers["answer"]
    scores = precision_recall_fscore_support(truth, predicted, labels=classes, zero_division=0)
    table = pd.DataFrame(np.array(scores).T, classes, ["precision", "recall", "f1", "images"])
    for name in classes:
        hits = ((truth == name) & (predicted == name)).sum()
        table.loc[name, ["recall low", "recall high"]] = wilson_interval(hits, (truth == name).sum())
        table.loc[name, ["precision low", "precision high"]] = wilson_interval(hits, (predicted == name).sum())
    return table


def report_scores(validation: dict, oof: dict, test: dict, per_class: pd.DataFrame) -> dict:
    """Shape scores for the report: of the best epoch in validation, out of fold, on the test part, and by class."""
    return {
        "best_epoch": validation["epoch"],
        "valid_macro_f1": validation["valid_macro_f1"],
        "test_macro_f1": test["score"],
        "test_macro_f1_ci95": [test["low"], test["high"]],
        "oof_macro_f1": oof["score"],
        "oof_macro_f1_ci95": [oof["low"], oof["high"]],
        "per_class": per_class[["precision", "recall", "f1"]].to_dict("index"),
    }
