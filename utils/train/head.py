"""A linear layer on frozen features: the first step of LP-FT, and the test bench for recipes."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import nn

from utils.config import SEED
from utils.cross_validation import grouped_folds, out_of_fold
from utils.datasets import ImageDataset, make_loader
from utils.eda.probes import COMPONENTS
from utils.features import extract_features
from utils.intervals import macro_f1_difference_interval
from utils.metrics import cross_entropy, macro_f1

PENALTIES = (1.0, 10.0, 100.0)  # scikit-learn's C: the larger, the weaker
ENOUGH = 2000  # rows to choose the penalty on
STEPS = 255  # of 8 bits over the range of all features
NEVER = -1000.0  # a logit
Head = tuple[np.ndarray, np.ndarray]  # weight (C, D) and bias (C,)


def view_features(
    model: nn.Module,
    image_set: Callable[..., ImageDataset],
    index: pd.DataFrame,
    augmented: Sequence[str],
    views: int,
    cache: Path | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Extract features of every image as it is, then of `views` random versions of those in the `augmented` classes.

    Returns features (M, D) and, for each, the position of its image in `index` (M,); the first N are the images as they
    are. The network stays as it is, so one extraction serves every fold and every head. `image_set(part, augmented)`
    makes a Dataset of rows of the index.
    """
    rows = [np.arange(len(index))]
    features = [extract_features(model, make_loader(image_set(index), batch_size=64), cache)]
    chosen = np.flatnonzero(index["class"].isin(augmented))
    versions = image_set(index.iloc[chosen], augmented)
    for versions.epoch in range(1, views + 1 if len(chosen) else 1):
        features.append(extract_features(model, make_loader(versions, batch_size=64), cache))
        rows.append(chosen)
    return np.concatenate(features), np.concatenate(rows)


@threadpool_limits.wrap(limits=1)  # on so few rows, threads mostly wait for each other
def fit_head(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, num_classes: int, class_weight: str | None = None
) -> Head:
    """Fit a linear layer to features (M, D): weight (C, D) and bias (C,), the first step of LP-FT (Kumar et al. 2022).

    Logistic regression on the first 100 principal axes of the standardized features; its penalty is the one with the
    least cross-entropy in cross-validation by group. A class without images is never the answer. Features that vary by
    less than a step of 8 bits, as those of a plain background, count for little: standardized like the others, they
    would get weights that turn INT8's rounding into the answer.
    """
    mean, scale = features.mean(axis=0), np.hypot(features.std(axis=0), (np.ptp(features) or 1) / STEPS)
    pca = PCA(min(COMPONENTS, *features.shape), random_state=SEED)
    inputs = pca.fit_transform((features - mean) / scale)
    unit = np.sqrt(10 / np.square(inputs).sum(axis=1).mean())  # a penalty then weighs the same whatever D is
    some = np.sort(np.random.default_rng(SEED).permutation(len(labels))[:ENOUGH])

    def head(penalty: float) -> LogisticRegression:
        return LogisticRegression(C=penalty, class_weight=class_weight, max_iter=1000)

    def loss(penalty: float) -> float:
        probabilities = out_of_fold(head(penalty), inputs[some] * unit, labels[some], groups[some], repeats=1)[0]
        return cross_entropy(np.log(probabilities.clip(1e-9)), labels[some])

    best = head(_weakest_that_helps(loss)).fit(inputs * unit, labels)
    weight, bias = best.coef_, best.intercept_
    if len(weight) == 1:  # two classes: scikit-learn keeps the difference only
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = unit * weight @ pca.components_ / scale
    whole = np.zeros((num_classes, features.shape[1])), np.full(num_classes, NEVER)
    whole[0][best.classes_], whole[1][best.classes_] = weight, bias - weight @ mean
    return whole


def _weakest_that_helps(loss: Callable[[float], float]) -> float:
    """Weaken the penalty as long as that lowers the loss; the weaker it is, the longer a fit takes."""
    best, least = PENALTIES[0], loss(PENALTIES[0])
    for penalty in PENALTIES[1:]:
        if (now := loss(penalty)) >= least:
            break
        best, least = penalty, now
    return best


def head_logits(head: Head, features: np.ndarray) -> np.ndarray:
    """Apply a head to features (N, D); → logits (N, C)."""
    return features @ head[0].T + head[1]


def set_head(model: nn.Module, head: Head) -> nn.Module:
    """Write weight and bias into the last layer; → the model."""
    layer = model.get_classifier()
    with torch.no_grad():
        for parameter, value in zip((layer.weight, layer.bias), head, strict=True):
            parameter.copy_(torch.from_numpy(value))
    return model


def head_out_of_fold(
    features: np.ndarray, rows: np.ndarray, labels: np.ndarray, groups: np.ndarray, class_weight: str | None = None
) -> np.ndarray:
    """Predict N images by heads that saw neither them nor their group; → logits (N, C), in five folds or fewer.

    `features` (M, D) and `rows` (M,) as from `view_features`, in any selection and repetition of versions that begins
    with the N images as they are; `labels` and `groups` are those of the N images.
    """
    num_classes = labels.max() + 1
    logits = np.zeros((len(labels), num_classes))
    for train, test in grouped_folds(labels, groups):
        chosen = np.isin(rows, train)
        head = fit_head(features[chosen], labels[rows[chosen]], groups[rows[chosen]], num_classes, class_weight)
        logits[test] = head_logits(head, features[test])
    return logits


def compare_recipes(
    features: np.ndarray, rows: np.ndarray, labels: np.ndarray, groups: np.ndarray, minority: Sequence[int]
) -> pd.DataFrame:
    """Score five recipes against imbalance, on the same folds; → a row each: macro_f1, difference, low, high.

    `features` and `rows` are those of `view_features` with all classes augmented, `labels` (N,) and `groups` (N,) the
    images'. The difference is to augmenting the `minority` only, paired, with its 95 % interval by group.
    """
    plain, short = np.arange(len(labels)), np.isin(labels[rows], minority)
    counts = np.bincount(labels)
    again = [np.resize(np.flatnonzero(labels == each), counts.max() - counts[each]) for each in np.unique(labels)]
    recipes = {
        "minority only": (np.concatenate([plain, np.flatnonzero(short[len(plain) :]) + len(plain)]), None),
        "none": (plain, None),
        "all classes": (np.arange(len(rows)), None),
        "class weights": (plain, "balanced"),
        "oversampling": (np.concatenate([plain, *again]), None),
    }
    answers = {
        name: head_out_of_fold(features[chosen], rows[chosen], labels, groups, weight).argmax(axis=1)
        for name, (chosen, weight) in recipes.items()
    }
    table = pd.DataFrame({"macro_f1": {name: macro_f1(labels, each, len(counts)) for name, each in answers.items()}})
    table["difference"] = table["macro_f1"] - table["macro_f1"]["minority only"]
    pairs = [(labels, answers["minority only"], each, len(counts), groups) for each in answers.values()]
    table[["low", "high"]] = [macro_f1_difference_interval(*pair) for pair in pairs]
    table.loc["minority only", ["low", "high"]] = 0.0  # it is compared with itself
    return table
