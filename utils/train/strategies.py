"""Strategies against imbalance, compared on heads; and whether an augmentation gives the class away."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from torch import nn

from utils import parallel
from utils.config import THREADS
from utils.cross_validation import grouped_folds
from utils.datasets import ImageDataset, make_loader
from utils.intervals import macro_f1_difference_interval
from utils.metrics import macro_f1
from utils.model import predict
from utils.train.head import Views, fit_head

BASELINE = "minority only"
IMAGES = 1000  # to compare on, at most


def heads_out_of_fold(strategies: Sequence[tuple[Views, str | None]]) -> list[np.ndarray]:
    """Predict N images by heads that saw neither them nor their group; → logits (N, C) of each strategy.

    A strategy is views and a class weight; the views are any selection and repetition of rows that begins with the N
    images as they are. There are five folds or fewer, and a task is a fold of one strategy.
    """
    logits, jobs = [], []
    for number, (views, _) in enumerate(strategies):
        images = len(np.unique(views.paths))
        labels, groups = views.labels[:images], views.groups[:images]
        logits.append(np.zeros((images, labels.max() + 1)))
        jobs += [(number, *fold) for fold in grouped_folds(labels, groups)]

    def answer(job: tuple[int, np.ndarray, np.ndarray]) -> np.ndarray:
        number, train, test = job
        views, class_weight = strategies[number]
        known = pd.Index(views.paths).isin(views.paths[train])
        weight, bias = fit_head(views.take(known), logits[number].shape[1], class_weight)
        return views.features[test] @ weight.T + bias

    for (number, _, test), answered in zip(jobs, parallel.run(answer, jobs, "strategies", THREADS), strict=True):
        logits[number][test] = answered
    return logits


def compare_strategies(views: Views, minority: Sequence[int]) -> pd.DataFrame:
    """Score five strategies against imbalance, on the same folds; → a row each: macro_f1, difference, low, high.

    `views` have random versions of all classes. The difference is to augmenting the `minority` only, paired, with its
    95 % interval by group.
    """
    as_they_are = ~pd.Index(views.paths).duplicated()
    plain = np.flatnonzero(as_they_are)
    labels, groups = views.labels[plain], views.groups[plain]
    counts = np.bincount(labels)
    repeated = [np.resize(plain[labels == label], counts.max() - counts[label]) for label in np.unique(labels)]
    chosen = {
        BASELINE: np.flatnonzero(as_they_are | np.isin(views.labels, minority)),
        "none": plain,
        "all classes": np.arange(len(views.labels)),
        "class weights": plain,
        "oversampling": np.concatenate([plain, *repeated]),
    }

    weights = {"class weights": "balanced"}
    logits = heads_out_of_fold([(views.take(rows), weights.get(name)) for name, rows in chosen.items()])
    answers = {name: values.argmax(axis=1) for name, values in zip(chosen, logits, strict=True)}
    table = pd.DataFrame(index=list(chosen), columns=["macro_f1", "difference", "low", "high"], dtype=float)
    for name, predictions in answers.items():
        table.loc[name, "macro_f1"] = macro_f1(labels, predictions, len(counts))
        interval = macro_f1_difference_interval(labels, answers[BASELINE], predictions, len(counts), groups)
        table.loc[name, ["low", "high"]] = interval
    table["difference"] = table["macro_f1"] - table.loc[BASELINE, "macro_f1"]
    table.loc[BASELINE, ["low", "high"]] = 0.0  # it is compared with itself
    return table


def artefact_rate(
    model: nn.Module, plain: ImageDataset, varied: ImageDataset, minority: Sequence[int], epochs: int
) -> float | None:
    """Share of images of other classes that are taken for the `minority` only once the augmentation has varied them.

    `plain` and `varied` show the same images; `varied` is drawn anew in each of the `epochs`. None without a minority.
    """
    if not minority:
        return None
    before = predict(model, make_loader(plain))[0].argmax(axis=1)
    taken = []
    for epoch in range(1, epochs + 1):
        after = predict(model, make_loader(varied.in_epoch(epoch)))[0].argmax(axis=1)
        taken.append(~np.isin(before, minority) & np.isin(after, minority))
    return float(np.mean(taken))
