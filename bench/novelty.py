"""Are photos of other things called unknown? python -m bench.novelty [--data DIR --name RUN --arch A --others DIR ...].

Needs the split.csv that EDA.ipynb makes. All classes of a run but one, then all but two, are known: head and detector
are fitted to 70 % of their groups, and predict the rest. Out of distribution are the classes left out, and the photos
in `--others`. Beside the distance, the maximum probability and the energy. Each has the threshold that keeps 95 % of
what is trained on, out of fold. Means over every choice of the known classes.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score

from bench.folds import Images, read_images
from bench.options import parse_options
from utils.config import SEED, project_path
from utils.cross_validation import fold_numbers, grouped_folds
from utils.datasets import ImageDataset, evaluation_transform, make_loader
from utils.features import extract_features, last_block
from utils.layout import list_images
from utils.model import build_model
from utils.train.head import Head
from utils.train.novelty import KEPT, fit_detector

MEASURES = ["distance", "probability", "energy"]


def measure(images: Images, train: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Fit head and detector to some images, and say how far others are from them (3, N), by each of the measures."""
    labels = np.unique(images.labels[train], return_inverse=True)[1]
    detector = fit_detector(last_block(images.features[train], images.sizes), labels)
    head = Head(images.sizes).fit(images.features[train], labels, images.groups[train])
    distances = detector.distances(last_block(features, images.sizes))
    energy = -logsumexp(head.decision_function(features), axis=1)
    return np.stack([distances, -head.predict_proba(features).max(axis=1), energy])


def compare(images: Images, known: np.ndarray, others: dict[str, np.ndarray]) -> list[dict]:
    """Train on images of the classes `known`, and predict others; → a row per kind of these and measure."""
    inside = np.flatnonzero(np.isin(images.labels, known))
    fold_of = fold_numbers(images.labels[inside], images.groups[inside], 10, SEED)
    train, test = inside[fold_of > 2], inside[fold_of <= 2]
    out_of_fold = np.zeros((len(MEASURES), len(train)))
    for fitted, held_out in grouped_folds(images.labels[train], images.groups[train]):
        out_of_fold[:, held_out] = measure(images, train[fitted], images.features[train[held_out]])
    thresholds, of_known = np.quantile(out_of_fold, KEPT, axis=1), measure(images, train, images.features[test])
    rows, left_out = [], images.features[~np.isin(images.labels, known)]
    for kind, features in ({"classes left out": left_out} | others).items():
        of_unknown = measure(images, train, features)
        truth = np.repeat([0, 1], [len(test), len(features)])
        for number, name in enumerate(MEASURES):
            row = {"out of distribution": kind, "known": len(known), "measure": name}
            row["auroc"] = roc_auc_score(truth, np.concatenate([of_known[number], of_unknown[number]]))
            row["caught"] = (of_unknown[number] > thresholds[number]).mean()
            rows.append(row | {"known kept": (of_known[number] <= thresholds[number]).mean()})
    return rows


def read_others(folders: list[str], arch: str, cache: Path) -> dict[str, np.ndarray]:
    """Extract the features of all photos in folders of classes; → features (N, D) by folder."""
    model, preprocessing = build_model(arch)
    features = {}
    for folder in map(project_path, folders):
        rows = [(path.relative_to(folder).as_posix(), name) for path, name, *_ in list_images(folder)]
        index = pd.DataFrame(rows, columns=["path", "class"])
        dataset = ImageDataset(folder, index, sorted(index["class"].unique()), evaluation_transform(preprocessing))
        features["/".join(folder.parts[-2:])] = extract_features(model, make_loader(dataset), cache)
    return features


def main() -> None:
    """Print a row per kind of images and measure."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--others", nargs="*", default=[])
    given, sys.argv[1:] = parser.parse_known_args()
    caption, images = read_images(__doc__)
    others = read_others(given.others, *parse_options(__doc__)[:2])
    classes, rows = np.unique(images.labels), []
    for left_out in (1, 2) if len(classes) > 3 else (1,):
        for first in classes:
            known = np.setdiff1d(classes, np.arange(first, first + left_out) % len(classes))
            rows += compare(images, known, others)
    print(caption)
    print(pd.DataFrame(rows).groupby(["out of distribution", "known", "measure"]).mean().round(3).to_string())


if __name__ == "__main__":
    main()
