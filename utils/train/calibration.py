"""How sure may a classifier be: temperature, reliability, and when to abstain."""

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from utils.cross_validation import OutOfFold

LEAST_COVERAGE = 0.1  # of the images that a threshold of abstention has to leave


def to_probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Turn logits (N, C) into probabilities, less sure the higher the temperature is."""
    return softmax(logits / temperature, axis=1)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Find the temperature with the smallest cross-entropy (Guo et al. 2017, arXiv 1706.04599), between 0.01 and 100.

    One prediction in N + 2 counts as wrong, as in Platt 1999: that all N were right is no proof that all will be.
    """
    smoothing = 1 / (len(labels) + 2)

    def loss(log: float) -> float:
        likelihood = log_softmax(logits / np.exp(log), axis=1)
        of_label = likelihood[np.arange(len(labels)), labels]
        of_others = (likelihood.sum(axis=1) - of_label) / (logits.shape[1] - 1)
        return -((1 - smoothing) * of_label + smoothing * of_others).mean()

    return float(np.exp(minimize_scalar(loss, bounds=np.log([0.01, 100]), method="bounded").x))


def tempered_out_of_fold(logits: np.ndarray, labels: np.ndarray, fold_of: np.ndarray) -> np.ndarray:
    """Turn out-of-fold logits (N, C) into probabilities; a fold's temperature is fitted on the others (`fold_of` (N,)).

    So no image has a say in how sure its own prediction is.
    """
    probabilities = np.zeros(logits.shape)
    for fold in np.unique(fold_of):
        inside = fold_of == fold
        probabilities[inside] = to_probabilities(logits[inside], fit_temperature(logits[~inside], labels[~inside]))
    return probabilities


def coverage_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Say what predicting only when sure would bring; → a row per threshold: coverage, and accuracy of what is left.

    After Geifman and El-Yaniv 2017 (arXiv 1705.08500).
    """
    confidence = probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    kept = np.arange(1, len(labels) + 1)
    right = np.cumsum((probabilities.argmax(axis=1) == labels)[order])
    rows = {"threshold": confidence[order], "coverage": kept / len(labels), "accuracy": right / kept}
    return pd.DataFrame(rows).drop_duplicates("threshold", keep="last", ignore_index=True)


def abstain_threshold(probabilities: np.ndarray, labels: np.ndarray, accuracy: float) -> float:
    """Find the lowest confidence from which on the share of right predictions is `accuracy`.

    0 where none has to be left out; 0, too, where only a threshold that leaves less than a tenth would be enough: that
    is no classifier.
    """
    table = coverage_accuracy(probabilities, labels)
    sufficient = table[(table["accuracy"] >= accuracy) & (table["coverage"] >= LEAST_COVERAGE)]
    if sufficient.empty:
        return 0.0
    lowest = sufficient.iloc[-1]
    return 0.0 if lowest["coverage"] == 1 else float(lowest["threshold"])


def calibrate(oof: OutOfFold, index: pd.DataFrame, fold_of: np.ndarray, accuracy: float) -> tuple[float, float]:
    """Fit temperature and threshold of abstention out of fold, without the test part of `index` (N,).

    `fold_of` (N,) are the folds of the first repeat; `accuracy` is the share of predictions that are to be right.
    """
    known = (index["split"] != "test").to_numpy()
    logits, labels = oof.logits[0, known], oof.labels[known]
    probabilities = tempered_out_of_fold(logits, labels, fold_of[known])
    return fit_temperature(logits, labels), abstain_threshold(probabilities, labels, accuracy)
