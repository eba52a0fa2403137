"""Cross-validation by group: folds, and predictions of images that the classifier has not seen."""

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn import config_context
from sklearn.base import ClassifierMixin, clone
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.utils.validation import has_fit_parameter
from torch import Tensor, nn

from utils import parallel
from utils.checkpoint import save_folds
from utils.config import SEED, THREADS
from utils.features import fingerprint
from utils.files import cache_key
from utils.intervals import codes
from utils.model import classifier_names

LINEAR = LogisticRegression(class_weight="balanced", max_iter=1000)  # the plain classifier, of compact features
FOLDS = 5
MANY = 2000  # images: another cut into folds now moves a score half as much as other images would (0.005 of 0.009)


def fold_numbers(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Cut N images into folds, stratified by class and groups whole; → each image's fold (N,), from 0.

    A class of few groups is absent from the test part of some folds; all their training parts have it.
    """
    return _cut(codes(labels), codes(groups), folds, seed).copy()


@lru_cache(32)  # many classifiers are scored on the same folds, and to cut them takes a tenth of a second
def _cut(label_codes: bytes, group_codes: bytes, folds: int, seed: int) -> np.ndarray:
    labels, groups = np.frombuffer(label_codes, np.int64), np.frombuffer(group_codes, np.int64)
    folds = max(2, min(folds, groups.max() + 1, np.bincount(labels).max()))
    splitter, fold_of = StratifiedGroupKFold(folds, shuffle=True, random_state=seed), np.zeros(len(labels), dtype=int)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # as fold_numbers says
        for fold, (_, test) in enumerate(splitter.split(labels, labels, groups)):
            fold_of[test] = fold
    return fold_of


def grouped_folds(labels: np.ndarray, groups: np.ndarray, seed: int = SEED) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cut into five folds; → positions (train, test) of each."""
    fold_of = fold_numbers(labels, groups, FOLDS, seed)
    return [(np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)) for fold in range(fold_of.max() + 1)]


Job = tuple[ClassifierMixin, np.ndarray, np.ndarray]  # a classifier, the rows to fit it to, and those to predict


def fit_and_predict(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, jobs: dict[object, list[Job]], name: str
) -> dict[object, np.ndarray]:
    """Fit classifiers to some rows of features (M, D) and predict others; → by key of `jobs`, probabilities (M, C).

    `labels` (M,) are numbers from 0; `groups` (M,) go to classifiers that take them. Rows that no job predicts stay 0.
    """
    num_classes = labels.max() + 1

    def predict(job: Job) -> np.ndarray:
        classifier, train, test = job
        if len(np.unique(labels[train])) < 2:
            classifier = DummyClassifier()  # others refuse one class
        extra = {"groups": groups[train]} if has_fit_parameter(classifier, "groups") else {}
        fitted = clone(classifier).fit(features[train], labels[train], **extra)
        probabilities = np.zeros((len(test), num_classes))
        with config_context(working_memory=64):  # MB, of 1,024, in each thread: no slower
            probabilities[:, fitted.classes_] = fitted.predict_proba(features[test])
        return probabilities

    listed = [(key, job) for key, key_jobs in jobs.items() for job in key_jobs]
    predicted = {key: np.zeros((len(labels), num_classes)) for key in jobs}
    with warnings.catch_warnings():  # many classes of few images are what there is, and no regression problem
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        results = parallel.run(predict, [job for _, job in listed], name, THREADS)
        for (key, (_, _, test)), probabilities in zip(listed, results, strict=True):
            predicted[key][test] = probabilities
    return predicted


def out_of_fold(
    classifier: ClassifierMixin,
    features: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    repeats: int | None = None,
) -> np.ndarray:
    """Predict every image by a classifier fitted without its group: probabilities (repeats, N, C).

    Folds are cut anew in each of the `repeats`; None: three, and one from 2,000 images on.
    """
    jobs = {}
    for repeat in range(repeats or (3 if len(labels) < MANY else 1)):
        jobs[repeat] = [(classifier, *parts) for parts in grouped_folds(labels, groups, SEED + repeat)]
    return np.stack(list(fit_and_predict(features, labels, groups, jobs, "probe").values()))


class OutOfFold(NamedTuple):
    """What `cross_validate` found."""

    logits: np.ndarray  # (R, N, C)
    labels: np.ndarray  # (N,)
    networks: list[dict]  # of the first repeat
    trained_on: float  # the share of the images that a network was trained on


def plan_folds(index: pd.DataFrame, folds: int | None, repeats: int | None, seed: int = SEED) -> np.ndarray:
    """Cut the images of `index` into folds to train networks, as `fold_numbers` does; → their folds (repeats, N).

    None leaves it open: seven folds, twice; five, once, from 2,000 images on.
    """
    many = len(index) >= MANY
    folds, repeats = folds or (5 if many else 7), repeats or (1 if many else 2)
    labels, groups = index["class"].to_numpy(), index["group"].to_numpy()
    return np.stack([fold_numbers(labels, groups, folds, seed + repeat) for repeat in range(repeats)])


def cross_validate(
    index: pd.DataFrame, fold_of: np.ndarray, fit: Callable, predict: Callable, shipped: nn.Module, threads: int = 1
) -> OutOfFold:
    """Predict every image of the table by networks that saw neither it nor its group, once for each row of `fold_of`.

    One fold is predicted, another chooses the epoch, and the rest is trained on: `fit(train, valid)` takes rows of
    `index` and returns a network; `predict(network, test)` returns logits (n, C) and labels (n,). So many `threads`
    train side by side. Each of the `networks` is a dict: `files`, the images that it predicted, and `state`, its
    weights as far as they are not those of the `shipped` network.
    """
    logits = np.zeros((*fold_of.shape, shipped.get_classifier().out_features), dtype=np.float32)
    labels, trained_on, networks = np.zeros(len(index), dtype=int), [], []
    parts = [(repeat, *masks) for repeat, cut in enumerate(fold_of) for masks in fold_parts(index["class"], cut)]

    def train_fold(part: tuple) -> tuple[tuple[np.ndarray, np.ndarray], dict[str, Tensor]]:
        repeat, is_test, is_valid = part
        model = fit(index[~is_test & ~is_valid], index[is_valid])
        return predict(model, index[is_test]), _own_weights(model, shipped) if repeat == 0 else {}

    results = parallel.run(train_fold, parts, "folds", threads)
    for (repeat, is_test, is_valid), (predicted, state) in zip(parts, results, strict=True):
        logits[repeat, is_test], labels[is_test] = predicted
        trained_on.append((~is_test & ~is_valid).mean())
        if repeat == 0:
            networks.append({"files": list(index["path"][is_test]), "state": state})
    return OutOfFold(logits, labels, networks, float(np.mean(trained_on)))


def fold_parts(labels: pd.Series, fold_of: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Turn each image's fold (N,) into parts: for each fold, masks (N,) of what is tested and of what validates.

    The fold before validates, or the nearest before it that leaves images of every class to train on.
    """
    parts, folds = [], fold_of.max() + 1
    for test in range(folds):
        before = [(test - distance) % folds for distance in range(1, folds)]
        left = [labels[(fold_of != test) & (fold_of != fold)].nunique() for fold in before]
        parts.append((fold_of == test, fold_of == before[int(np.argmax(left))]))
    return parts


def _own_weights(model: nn.Module, shipped: nn.Module) -> dict[str, Tensor]:
    """Return the weights that turn `shipped` into `model`: the last layer's where all others are equal, or else all."""
    weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    last, known = classifier_names(model), shipped.state_dict()
    body_is_shared = all(torch.equal(weights[name], known[name].cpu()) for name in set(weights) - set(last))
    return {name: weights[name] for name in last} if body_is_shared else weights


def keep_folds(
    path: Path, parts: Sequence[object], compute: Callable[..., OutOfFold], shipped: nn.Module, **details
) -> OutOfFold:
    """Return what `cross_validate` finds, computed anew if any of the `parts` that it depends on has changed.

    `compute` takes the `shipped` network, which counts among these parts. The file holds what is found beside what
    `checkpoint.save_folds` writes: the networks, the fingerprint of the shipped one, and `details`.
    """
    network = fingerprint(shipped, whole=True)
    key = cache_key([*parts, network, details])
    try:
        known = torch.load(path, weights_only=True, map_location="cpu")
    except Exception:  # none yet, or damaged: torch raises pickle, zip, EOF and runtime errors alike
        known = {}
    if known.get("key") == key:
        return OutOfFold(known["logits"].numpy(), known["labels"].numpy(), known["folds"], known["trained_on"])
    oof = compute(shipped=shipped)
    arrays = {"logits": torch.from_numpy(oof.logits), "labels": torch.from_numpy(oof.labels)}
    save_folds(path, oof.networks, network, **details, **arrays, trained_on=oof.trained_on, key=key)
    return oof
