"""Strategies against imbalance, compared on the same folds, and the one that ships."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch import nn

from utils.config import SEED
from utils.cross_validation import fit_and_predict, grouped_folds
from utils.datasets import ImageDataset
from utils.files import remembered
from utils.intervals import compare_predictions
from utils.train.feature_table import FeatureTable, extract
from utils.train.head import Head

DEFAULT = "minority"
IMAGES = 1000  # to compare on, at most
ARTEFACTS = 0.10  # share of varied images of other classes, from which on variation itself counts for the minority


class Strategy(NamedTuple):
    """What is done for the classes that are short of images.

    `augmented` lists the labels whose images are varied at random, `class_weight` "balanced" weighs classes alike, and
    with `oversample` images are repeated until all classes have as many.
    """

    name: str
    augmented: Sequence[int] = ()
    class_weight: str | None = None
    oversample: bool = False

    def repeat(self, labels: Sequence) -> np.ndarray:
        """Give positions of images with labels (N,): each once and, in oversampling, again until classes are alike."""
        numbers = pd.factorize(np.asarray(labels))[0]
        positions, counts = np.arange(len(numbers)), np.bincount(numbers)
        if not self.oversample:
            return positions
        more = [np.resize(positions[numbers == number], counts.max() - counts[number]) for number in set(numbers)]
        return np.concatenate([positions, *more])


def strategies(minority: Sequence[int], num_classes: int) -> dict[str, Strategy]:
    """Name the strategies; the first, by default, is to vary the images of the minority only."""
    return {
        DEFAULT: Strategy("minority only", minority),
        "none": Strategy("none"),
        "all": Strategy("all classes", range(num_classes)),
        "class weights": Strategy("class weights", class_weight="balanced"),
        "oversampling": Strategy("oversampling", oversample=True),
    }


def compare_on(
    network: nn.Module,
    image_set: Callable[..., ImageDataset],
    index: pd.DataFrame,
    minority: Sequence[str],
    versions: int,
    run: Path,
) -> pd.DataFrame:
    """Compare the strategies on at most 1,000 images of `index`, none of the test part; → the table of `compare`.

    It is empty where no class is short of images. Features and scores are remembered in the folder of the `run`.
    """
    if not minority:
        return pd.DataFrame()
    classes = sorted(index["class"].unique())
    known = index[index["split"] != "test"]
    known = known.sample(min(IMAGES, len(known)), random_state=SEED).sort_index()
    table = extract(network, image_set, known, dict.fromkeys(classes, versions), run / "features")
    labels = [classes.index(name) for name in minority]
    found = remembered(run / "strategies.json", [table.digest, labels], lambda: compare(table, labels).to_dict("index"))
    return pd.DataFrame.from_dict(found, orient="index")


def compare(table: FeatureTable, minority: Sequence[int]) -> pd.DataFrame:
    """Score the strategies on the same folds by group; → a row each: macro_f1, difference, low, high, artefact_rate.

    The table has random versions of all classes. The difference is to varying the `minority` only, paired, with its
    95 % interval by group. The artefact rate is the share of varied images of other classes that a head takes for the
    minority although it does not take the image itself for it.
    """
    plain = np.flatnonzero(table.unaugmented)
    image_of = pd.Index(table.paths[plain]).get_indexer(table.paths)
    predicted = _predict(table, strategies(minority, table.labels.max() + 1), image_of)
    of_images = {key: rows[plain] for key, rows in predicted.items()}
    found = compare_predictions(of_images, DEFAULT, table.labels[plain], table.groups[plain])
    found["artefact_rate"] = [_artefact_rate(rows, image_of, table.labels, minority) for rows in predicted.values()]
    return found


def _predict(table: FeatureTable, compared: dict[str, Strategy], image_of: np.ndarray) -> dict[str, np.ndarray]:
    """Predict all rows (M,), by heads that saw no row of their group; `image_of` (M,) numbers the images behind."""
    plain, jobs = table.take(table.unaugmented), {key: [] for key in compared}
    for key, strategy in compared.items():
        head = Head(table.sizes, table.labels.max() + 1, strategy.class_weight)
        for train, test in grouped_folds(plain.labels, plain.groups):
            repeated = train[strategy.repeat(plain.labels[train])]
            rows = table.positions(plain.paths[repeated], strategy.augmented)
            jobs[key].append((head, rows, np.flatnonzero(np.isin(image_of, test))))
    found = fit_and_predict(table.features, table.labels, table.groups, jobs, "strategies")
    return {key: probabilities.argmax(axis=1) for key, probabilities in found.items()}


def _artefact_rate(predicted: np.ndarray, image_of: np.ndarray, labels: np.ndarray, minority: Sequence[int]) -> float:
    """Count varied images of other classes that are taken for the minority only once they were varied."""
    varied = np.arange(len(labels)) >= image_of.max() + 1
    others = varied & ~np.isin(labels, minority)
    before, after = np.isin(predicted[image_of[others]], minority), np.isin(predicted[others], minority)
    return float((after & ~before).mean()) if others.any() else 0.0


def choose(
    augment: str | None, compared: pd.DataFrame, minority: Sequence[str], classes: Sequence[str]
) -> tuple[Strategy, dict[str, str]]:
    """Take the strategy that the setting AUGMENT names or, if that is None, choose one by the table of `compare`.

    That is to vary the minority only, unless another strategy is better beyond doubt, or unless variation gives the
    class away. Returns it, and its `name` and the `reason` for the report.
    """
    classes = list(classes)
    known = strategies([classes.index(name) for name in minority], len(classes))
    if augment:
        key, reason = augment, "given, by AUGMENT or for the embedded example"
    elif compared.empty:
        key, reason = "none", "no class is short of images, so there is nothing to balance"
    else:
        key, reason = _best(compared)
    return known[key], {"name": known[key].name, "reason": reason}


def _best(compared: pd.DataFrame) -> tuple[str, str]:
    better = compared[compared["low"] > 0]
    if len(better):
        key = str(better["macro_f1"].idxmax())
        gain, low, high = better.loc[key, ["difference", "low", "high"]]
        return key, f"better than augmenting the minority only: macro-F1 {gain:+.3f} ({low:+.3f} to {high:+.3f})"
    rates = compared["artefact_rate"]
    if rates[DEFAULT] > ARTEFACTS:
        key = str(compared.loc[rates <= ARTEFACTS if (rates <= ARTEFACTS).any() else rates.index, "macro_f1"].idxmax())
        return key, (
            f"with augmentation of the minority only, {rates[DEFAULT]:.0%} of the other classes' images are taken for "
            f"a minority class once they are turned and mirrored; with {key}, {rates[key]:.0%}"
        )
    return DEFAULT, "no other strategy is better beyond doubt"
