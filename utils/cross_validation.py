"""Cross-validation by group: folds, and answers to images that the classifier has not seen."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.base import ClassifierMixin, clone
from sklearn.dummy import DummyClassifier
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor, nn

from utils.config import SEED, InputError, relative
from utils.files import likely_cause, whole_file
from utils.model import classifier_names
from utils.progress import progress

FOLDS = 5


def grouped_folds(labels: np.ndarray, groups: np.ndarray, seed: int = SEED) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cut into five folds (fewer if a class has fewer groups), stratified, no group on both sides; (train, test)."""
    fewest = min(len(np.unique(groups[labels == label])) for label in np.unique(labels))
    folds = StratifiedGroupKFold(int(np.clip(fewest, 2, FOLDS)), shuffle=True, random_state=seed)
    return list(folds.split(labels, labels, groups))


def out_of_fold(
    classifier: ClassifierMixin, features: np.ndarray, labels: np.ndarray, groups: np.ndarray, repeats: int = 3
) -> np.ndarray:
    """Predict every image by a classifier fitted without its group: probabilities (repeats, N, C)."""
    probabilities = np.zeros((repeats, len(labels), labels.max() + 1))
    for repeat in range(repeats):
        for train, test in grouped_folds(labels, groups, SEED + repeat):
            known = classifier if len(np.unique(labels[train])) > 1 else DummyClassifier()  # others refuse one class
            fitted = clone(known).fit(features[train], labels[train])
            probabilities[repeat][np.ix_(test, fitted.classes_)] = fitted.predict_proba(features[test])
    return probabilities


class OutOfFold(NamedTuple):
    """What `cross_validate` found: logits (R, N, C), labels (N,), and the networks of the first repeat."""

    logits: np.ndarray
    labels: np.ndarray
    networks: list[dict]


def assign_folds(labels: pd.Series, groups: pd.Series, folds: int, repeats: int, seed: int = SEED) -> np.ndarray:
    """Cut N images into folds, `repeats` times, stratified and groups whole; → each image's fold (repeats, N), from 0.

    There are fewer folds where a class has fewer groups. Raises InputError for fewer than three folds.
    """
    if folds < 3:
        raise InputError(f"FOLDS is {folds}: at least 3 are needed, to train on one, choose on one and test on one")
    folds = min(folds, groups.groupby(labels).nunique().min())
    fold_of = np.zeros((repeats, len(labels)), dtype=int)
    for repeat in range(repeats):
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed + repeat)
        for fold, (_, test) in enumerate(splitter.split(labels, labels, groups)):
            fold_of[repeat, test] = fold
    return fold_of


def cross_validate(
    index: pd.DataFrame, fold_of: np.ndarray, fit: Callable, predict: Callable, shipped: nn.Module
) -> OutOfFold:
    """Predict every image of the table by networks that saw neither it nor its group, once for each row of `fold_of`.

    One fold is predicted, the one before it chooses the epoch, and the rest is trained on: `fit(train, valid)` takes
    rows of `index` and returns a network; `predict(network, test)` returns logits (n, C) and labels (n,). Each of the
    `networks` is a dict: `files`, the images that it is asked about, and `state`, its weights as far as they are not
    those of the `shipped` network.
    """
    repeats, folds = len(fold_of), fold_of.max() + 1
    logits = np.zeros((*fold_of.shape, shipped.get_classifier().out_features), dtype=np.float32)
    labels = np.zeros(len(index), dtype=int)
    networks = []
    for repeat, fold in progress(list(np.ndindex(repeats, folds)), "folds"):
        is_test = fold_of[repeat] == fold
        is_valid = fold_of[repeat] == (fold - 1) % folds
        model = fit(index[~is_test & ~is_valid], index[is_valid])
        logits[repeat, is_test], labels[is_test] = predict(model, index[is_test])
        if repeat == 0:
            networks.append({"files": list(index["path"][is_test]), "state": _own_weights(model, shipped)})
    return OutOfFold(logits, labels, networks)


def _own_weights(model: nn.Module, shipped: nn.Module) -> dict[str, Tensor]:
    """Return the weights that turn `shipped` into `model`: the last layer's where all others are equal, or else all."""
    weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    shipped_weights = shipped.state_dict()
    last = classifier_names(model)
    if all(torch.equal(value, shipped_weights[name].cpu()) for name, value in weights.items() if name not in last):
        return {name: weights[name] for name in last}
    return weights


def keep_answers(
    path: Path, images: pd.Series, compute: Callable[[], dict[str, np.ndarray]], **made_from: str
) -> dict[str, np.ndarray]:
    """Read the out-of-fold logits in a file, or, if it was not `made_from` the same, compute them and write it."""
    try:
        return load_answers(path, images, **made_from)
    except InputError:
        logits = compute()
        save_answers(path, images, logits, **made_from)
    return logits


def save_answers(path: Path, images: pd.Series, logits: dict[str, np.ndarray], **made_from: str) -> None:
    """Write each model's out-of-fold logits (N, C) for `images`, paths (N,), and what they were `made_from`."""
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, images=images.to_numpy(str), made_from=json.dumps(made_from), **logits)


def load_answers(path: Path, images: pd.Series, **made_from: str) -> dict[str, np.ndarray]:
    """Read the out-of-fold logits (N, C) of each model for `images`, paths (N,).

    Raises InputError when the file is absent, damaged, or was made from something else than it would be now.
    """
    again = "run onnx_quant.ipynb to make it again"
    if not path.exists():
        raise InputError(f"{relative(path)} does not exist: {again}")
    try:
        with np.load(path) as file:
            logits = {name: file[name] for name in file.files}
        known, before = logits.pop("images").tolist(), json.loads(str(logits.pop("made_from")))
    except Exception:  # numpy raises zip, EOF and value errors alike
        raise InputError(f"{relative(path)} cannot be read: {likely_cause(path)}. {again}") from None
    changed = [name for name, value in made_from.items() if before.get(name) != value]
    if changed or known != list(images):
        raise InputError(f"{relative(path)} was made from another {' and '.join(changed) or 'set of images'}: {again}")
    return logits
