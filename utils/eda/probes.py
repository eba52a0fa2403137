"""What features know about the classes: drawn, in clusters, and by simple classifiers asked about unseen groups."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from sklearn import config_context
from sklearn.cluster import KMeans
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torch.utils.data import DataLoader

from utils.config import SEED
from utils.eda.duplicates import color_histogram
from utils.features import compact, extract_features, last_block
from utils.intervals import repeated_difference, repeated_score, wilson_interval
from utils.model import randomised
from utils.plots import COLORS, apart, table

FOREST = ExtraTreesClassifier(min_samples_leaf=5, class_weight="balanced", random_state=SEED)


def frozen_features(network: nn.Module, loader: DataLoader, cache: Path | None = None) -> np.ndarray:
    """Compute what the last layer of a network sees of each image, compact: (N, K)."""
    return compact(last_block(extract_features(network, loader, cache), network.sizes))


def draw_classes(features: np.ndarray, names: pd.Series, ax: Axes | None = None) -> Axes:
    """Draw the first two principal components (N, K) colored by name, each name amid its points (up to 20 names)."""
    ax = ax or plt.gca()
    known = np.unique(names)
    middles = np.array([np.median(features[names == name, :2], axis=0) for name in known])
    order = middles[:, 1].argsort()
    middles[order, 1] = apart(middles[order, 1], 0.07 * np.ptp(features[:, 1]))
    for position, (name, middle) in enumerate(zip(known, middles, strict=True)):
        color = COLORS[position % len(COLORS)]
        ax.scatter(*features[names == name, :2].T, s=14, color=color, alpha=0.6, linewidths=0)
        box = {"boxstyle": "round", "facecolor": "white", "edgecolor": color, "alpha": 0.8}
        if len(known) <= 20:
            ax.text(*middle, name, ha="center", va="center", color=color, weight="bold", bbox=box, zorder=1000)
    variances = features.var(axis=0)
    first, second = variances[:2] / (variances.sum() or 1)
    ax.set(xlabel=f"first component ({first:.0%} of the variance)", ylabel=f"second component ({second:.0%})")
    ax.set_title("Features of the images, by class")
    return ax


def draw_images(features: np.ndarray, images: np.ndarray, ax: Axes | None = None) -> Axes:
    """Draw images (N, S, S, 3) at their first two components (N, K): at most 80, and none that would cover another."""
    ax, shown = ax or plt.gca(), []
    points = features[:, :2]
    places = (points - points.min(axis=0)) / np.maximum(np.ptp(points, axis=0), 1e-9)
    for position in np.random.default_rng(SEED).permutation(len(points)):
        free = all(np.abs(places[position] - places[other]).max() > 0.055 for other in shown)
        if free and len(shown) < 80:
            shown.append(position)
            ax.add_artist(AnnotationBbox(OffsetImage(images[position], zoom=0.4), points[position], frameon=False))
    return ax


def clusters(features: np.ndarray, number: int) -> np.ndarray:
    """Put images into clusters by KMeans, fewer than `number` where fewer images differ; → each one's cluster (N,)."""
    distinct = len(np.unique(features.round(3), axis=0))
    return KMeans(min(number, distinct), n_init=10, random_state=SEED).fit_predict(features)


def draw_clusters(classes: pd.Series, cluster: np.ndarray, ax: Axes | None = None) -> Axes:
    """Draw how many images of each class lie in each cluster (N,), and how well both agree."""
    held = pd.crosstab(classes, cluster)
    held = held[held.idxmax().sort_values(kind="stable").index].set_axis(range(1, held.shape[1] + 1), axis=1)
    ax = table(held.rename_axis(columns="cluster"), ax=ax)
    ax.set_title(f"{held.shape[1]} clusters: ARI {adjusted_rand_score(classes, cluster):.2f}")
    return ax


def controls(network: nn.Module, loader: DataLoader, pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Describe images without any pretraining, by random weights, colors, and pixels; → features (N, D) by name.

    `pictures` (N, S, S, 3) are those of the loader.
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
    thresholds = np.array([row[labels == label].mean() for label, row in enumerate(probabilities.T)])
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
