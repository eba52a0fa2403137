"""Are photos of other things called unknown? python -m bench.novelty [--data DIR --name RUN --arch A --others DIR ...].

Needs the split.csv that EDA.ipynb makes. All classes of a run but one, then all but two, are known: head and detector
are fitted to 70 % of their groups, and the rest are friends. Strangers are the classes left out, and the photos in the
folders `--others`. Beside novelty, the maximum probability and the energy. Each has the threshold that keeps 95 % of
what is trained on, out of fold. Means over every choice of the known classes.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score
from utils.train.confidence import to_probabilities
from utils.train.discriminant import fit_layer
from utils.train.strangers import MEASURES

from bench.folds import Images, read_images
from bench.options import parse_options
from utils.config import SEED, project_path
from utils.cross_validation import fold_numbers, grouped_folds
from utils.datasets import ImageDataset, evaluation_transform, make_loader
from utils.features import extract_features
from utils.images import list_images
from utils.model import build_model
from utils.train.novelty import KEPT, fit_detector


class Judge:
    """A head and a detector, fitted to some images."""

    def __init__(self, features: np.ndarray, labels: np.ndarray, groups: np.ndarray):
        labels = np.unique(labels, return_inverse=True)[1]
        self.detector = fit_detector(features, labels)
        self.weight, self.bias = fit_layer(features, labels, groups, labels.max() + 1).layer

    def measure(self, features: np.ndarray) -> np.ndarray:
        """Say how strange images are, (3, N), a row for each of the measures."""
        logits = features @ self.weight.T + self.bias
        by_logits = -to_probabilities(logits).max(axis=1), -logsumexp(logits, axis=1)
        return np.stack([self.detector.distances(features), *by_logits])


def show(images: Images, known: np.ndarray, others: dict[str, np.ndarray]) -> list[dict]:
    """Train on images of the classes `known`, and ask about strangers; → a row per kind of strangers and measure."""
    groups = images.index["group"].factorize()[0]
    inside = np.flatnonzero(np.isin(images.labels, known))
    fold_of = fold_numbers(images.labels[inside], groups[inside], 10, SEED)
    train, friends = inside[fold_of > 2], inside[fold_of <= 2]
    parts = images.features[train], images.labels[train], groups[train]
    out_of_fold = np.zeros((len(MEASURES), len(train)))
    for fitted, asked in grouped_folds(*parts[1:]):
        out_of_fold[:, asked] = Judge(*(part[fitted] for part in parts)).measure(parts[0][asked])
    thresholds, judge, rows = np.quantile(out_of_fold, KEPT, axis=1), Judge(*parts), []
    of_friends = judge.measure(images.features[friends])
    strangers = {"classes left out": images.features[~np.isin(images.labels, known)]} | others
    for kind, features in strangers.items():
        for measure, threshold, friend, stranger in zip(
            MEASURES, thresholds, of_friends, judge.measure(features), strict=True
        ):
            truth = np.repeat([0, 1], [len(friend), len(stranger)])
            row = {"strangers": kind, "known": len(known), "measure": measure}
            row["auroc"] = roc_auc_score(truth, np.concatenate([friend, stranger]))
            rows.append(row | {"caught": (stranger > threshold).mean(), "friends kept": (friend <= threshold).mean()})
    return rows


def read_others(folders: list[str], arch: str, cache: Path) -> dict[str, np.ndarray]:
    """Extract the features of all photos in folders of classes; → features (N, D) by folder."""
    model, preprocessing = build_model(arch)
    features = {}
    for folder in map(project_path, folders):
        rows = [(path.relative_to(folder).as_posix(), name) for name, path in list_images(folder)]
        index = pd.DataFrame(rows, columns=["path", "class"])
        dataset = ImageDataset(folder, index, sorted(index["class"].unique()), evaluation_transform(preprocessing))
        features["/".join(folder.parts[-2:])] = extract_features(model, make_loader(dataset, 64), cache)
    return features


def main() -> None:
    """Print a row per kind of strangers and measure."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--others", nargs="*", default=[])
    given, sys.argv[1:] = parser.parse_known_args()
    caption, images = read_images(__doc__)
    others = read_others(given.others, *parse_options(__doc__)[:2])
    classes, rows = np.unique(images.labels), []
    for left_out in (1, 2) if len(classes) > 3 else (1,):
        for first in classes:
            known = np.setdiff1d(classes, np.arange(first, first + left_out) % len(classes))
            rows += show(images, known, others)
    print(caption)
    print(pd.DataFrame(rows).groupby(["strangers", "known", "measure"]).mean().round(3).to_string())


if __name__ == "__main__":
    main()
