"""Cross-validation by group: folds, and answers to images that the classifier has not seen."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.base import ClassifierMixin, clone
from sklearn.dummy import DummyClassifier
from sklearn.model_selection import StratifiedGroupKFold

from utils.config import SEED, InputError, relative, seed_everything
from utils.files import likely_cause, whole_file
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
    """What `cross_validate` found: logits (R, N, C), each image's fold (R, N), and the networks of the first repeat."""

    logits: np.ndarray
    folds: np.ndarray
    networks: list[dict]


def cross_validate(
    index: pd.DataFrame, groups: pd.Series, recipe: Callable[..., tuple], folds: int, repeats: int, seed: int = SEED
) -> OutOfFold:
    """Predict every image, `repeats` times, by networks that saw neither it nor its group.

    In each round one fold is predicted, the one before it chooses the epoch, and the rest is trained on: `recipe(train,
    valid, test)` gets rows of `index` and returns logits of `test` and the weights. There are fewer folds where a class
    has fewer groups. Each of the `networks` is a dict: `files`, the images that it has not seen, and `state`, the
    weights. Raises InputError for fewer than three folds.
    """
    if folds < 3:
        raise InputError(f"FOLDS is {folds}: at least 3 are needed, to train on one, choose on one and test on one")
    folds = min(folds, groups.groupby(index["class"]).nunique().min())
    logits, fold_of, networks = [{} for _ in range(repeats)], np.zeros((repeats, len(index)), dtype=int), []
    for repeat, fold in progress(list(np.ndindex(repeats, folds)), "folds"):
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed + repeat)
        tests = [test for _, test in splitter.split(index, index["class"], groups)]
        test, valid = tests[fold], tests[fold - 1]
        seed_everything(seed + fold)
        rest = index.drop(index.index[np.concatenate([test, valid])])
        predicted, state = recipe(rest, index.iloc[valid], index.iloc[test])
        logits[repeat] |= dict(zip(test, predicted, strict=True))
        fold_of[repeat, test] = fold
        if repeat == 0:
            networks.append({"files": list(index["path"].iloc[test]), "state": state})
    stacked = [[each[position] for position in range(len(index))] for each in logits]
    return OutOfFold(np.array(stacked), fold_of, networks)


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
