"""Simple classifiers that say what features know about the classes, always asked about groups they have not seen."""

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn import config_context
from sklearn.cluster import KMeans
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torch.utils.data import DataLoader

from utils.config import SEED
from utils.eda.duplicates import color_histogram
from utils.features import compact, extract_features, last_block
from utils.intervals import repeated_difference, repeated_score, wilson_interval
from utils.model import randomised

FOREST = ExtraTreesClassifier(min_samples_leaf=5, class_weight="balanced", random_state=SEED)


def frozen_features(network: nn.Module, loader: DataLoader, cache: Path | None = None) -> np.ndarray:
    """Compute what the last layer of a network sees of each image, compact: (N, K)."""
    return compact(last_block(extract_features(network, loader, cache), network.sizes))


def clusters(features: np.ndarray, number: int) -> np.ndarray:
    """Put images into clusters by KMeans, fewer than `number` where fewer images differ; → each one's cluster (N,)."""
    distinct = len(np.unique(features.round(3), axis=0))
    return KMeans(min(number, distinct), n_init=10, random_state=SEED).fit_predict(features)


def controls(network: nn.Module, loader: DataLoader, pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Describe images without any pretraining: features by the same network with random weights, colors, and pixels.

    `pictures` (N, S, S, 3) are those of the loader. Returns compact features (N, D) by name.
    """
    colors = np.sqrt([color_histogram(picture, levels=4) for picture in pictures])
    return {
        "random network": frozen_features(randomised(network), loader),
        "color histogram": compact(colors),
        "raw pixels": compact(pictures[:, ::2, ::2].reshape(len(pictures), -1)),
    }


def scores(predicted: dict[str, np.ndarray], labels: np.ndarray, groups: np.ndarray) -> pd.DataFrame:
    """Macro-F1 of probabilities (R, N, C) by name: columns score, low and high, the 95 % interval by group."""
    return pd.DataFrame({name: repeated_score(outputs, labels, groups) for name, outputs in predicted.items()}).T


def separability(predicted: dict[str, np.ndarray], labels: np.ndarray, groups: np.ndarray) -> dict:
    """Say what the report tells of probabilities (R, N, C): by pretrained features, which come first, and by controls.

    `pretraining` is what macro-F1 gains beyond the best control, with its paired 95 % interval.
    """
    table = scores(predicted, labels, groups)
    own, control = table.index[0], table["score"].iloc[1:].idxmax()
    difference, low, high = repeated_difference(predicted[control], predicted[own], labels, groups)
    return {
        "macro_f1": table.loc[own, "score"],
        "ci95": table.loc[own, ["low", "high"]].tolist(),
        "probes": table["score"].to_dict(),
        "pretraining": {"control": control, "difference": difference, "ci95": [low, high]},
    }


def shortcuts(index: pd.DataFrame, sizes: list[int], pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Describe images by what is not the object, features (N, D) by name; `sizes` are the files' bytes."""
    edge = pictures.shape[1] - 1
    rows, columns = [0, 0, 0, edge // 2, edge // 2, edge, edge, edge], [0, edge // 2, edge, 0, edge, 0, edge // 2, edge]
    return {
        "border pixels": pictures[:, rows, columns].reshape(len(pictures), -1),
        "mean color": pictures.mean(axis=(1, 2)),
        "file size and shape": index[["width", "height"]].assign(bytes=sizes).to_numpy(),
    }


def provable_recall(index: pd.DataFrame) -> pd.DataFrame:
    """Say what a perfect score on the test part would prove of each class's recall: the lower end of Wilson's interval.

    Every test image counts as one trial, or only every group does, as views of one object succeed or fail together.
    """
    table = index[index["split"] == "test"].groupby("class").agg(images=("path", "size"), groups=("group", "nunique"))
    for trials in ("images", "groups"):
        table[f"recall, by {trials}"] = [wilson_interval(total, total)[0] for total in table[trials]]
    return table


def label_suspects(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find images that look like another class than their folder's, most suspicious first: positions, and that class.

    Confident learning (Northcutt et al. 2021): a class is confident of an image when its out-of-fold probability (N, C)
    reaches the mean over the images that carry this label; a suspect's most probable confident class is not its label.
    Where no class is confident, the most probable one counts.
    """
    classes = range(probabilities.shape[1])
    thresholds = np.array([probabilities[labels == label, label].mean() for label in classes])
    confident = np.where(probabilities >= thresholds, probabilities, 0)
    other = np.where(confident.any(axis=1, keepdims=True), confident, probabilities).argmax(axis=1)
    suspects = np.flatnonzero(other != labels)
    margin = probabilities[suspects, other[suspects]] - probabilities[suspects, labels[suspects]]
    order = suspects[np.argsort(-margin, kind="stable")]
    return order, other[order]


def outliers(features: np.ndarray, neighbors: int = 5) -> np.ndarray:
    """Rank images by the mean cosine distance to their nearest neighbors, the loneliest first: positions (N,)."""
    nearest = NearestNeighbors(n_neighbors=min(neighbors, len(features) - 1), metric="cosine").fit(features)
    with config_context(working_memory=64):  # MB, of 1,024: no slower
        distances, _ = nearest.kneighbors()
    return np.argsort(-distances.mean(axis=1), kind="stable")
