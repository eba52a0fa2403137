"""Scores: macro-F1, cross-entropy, calibration error, and the noise of logits."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import log_softmax
from sklearn.metrics import confusion_matrix


def confusion(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Count (true, predicted) pairs over the full list of classes: (C, C)."""
    return confusion_matrix(labels, predictions, labels=range(num_classes))


def macro_f1(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> float:
    """Average F1 over the full list of classes, computed once over all predictions; an absent class counts as 0."""
    return float(weighted_macro_f1(labels, predictions, num_classes, np.ones((1, len(labels))))[0])


def weighted_macro_f1(labels: np.ndarray, predictions: np.ndarray, num_classes: int, weights: np.ndarray) -> np.ndarray:
    """Macro-F1 (B,) under B rows of image weights (B, N), as `resample_weights` draws them.

    Scikit-learn's `f1_score`, which gives the same numbers, takes 2 ms for each row.
    """
    one_hot = np.eye(num_classes, dtype=weights.dtype)
    true, predicted = one_hot[labels], one_hot[predictions]
    hits = (weights @ (true * predicted)).astype(np.float64)
    total = (weights @ (true + predicted)).astype(np.float64)
    return np.divide(2 * hits, total, out=np.zeros_like(total), where=total > 0).mean(axis=1)


def prediction_table(part: pd.DataFrame, probabilities: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """List what probabilities (N, C) predict for the images in `part`, rows of the table, which keep their order.

    Columns: path, class and, where `part` has it, group; prediction, probability, correct.
    """
    table = part[part.columns.intersection(["path", "class", "group"])].copy()
    table["prediction"] = np.array(classes)[probabilities.argmax(axis=1)]
    table["probability"] = probabilities.max(axis=1)
    table["correct"] = table["prediction"] == table["class"]
    return table


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood of the labels (N,) under softmax of the logits (N, C)."""
    return float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = 10) -> pd.DataFrame:
    """Compare confidence, accuracy and images in bins of equally many images (Nixon et al. 2019, arXiv 1904.01685)."""
    table = pd.DataFrame({"confidence": probabilities.max(axis=1), "accuracy": probabilities.argmax(axis=1) == labels})
    bin_of = table["confidence"].rank(method="first").sub(1) * bins // len(table)
    return table.groupby(bin_of.rename("bin")).mean().assign(images=bin_of.value_counts())


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 10) -> float:
    """Mean distance of confidence and accuracy over the bins of `reliability` (Naeini et al. 2015)."""
    table = reliability(probabilities, labels, bins)
    return float(np.average((table["confidence"] - table["accuracy"]).abs(), weights=table["images"]))


def sqnr_db(reference: np.ndarray, logits: np.ndarray) -> float:
    """Signal-to-quantization-noise ratio of logits against the float model's, in decibel."""
    noise = np.square(reference - logits, dtype=np.float64).sum()
    return float(10 * np.log10(np.square(reference, dtype=np.float64).sum() / max(noise, 1e-12)))
