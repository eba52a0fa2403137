"""EDA's figures: every function draws arrays into `ax` (default: the current axes) and returns it."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from sklearn.metrics import adjusted_rand_score

from utils.config import SEED
from utils.plots import COLORS, apart, intervals, table


def scatter(features: np.ndarray, names: pd.Series, ax: Axes | None = None) -> Axes:
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


def thumbnails(features: np.ndarray, images: np.ndarray, ax: Axes | None = None) -> Axes:
    """Draw images (N, S, S, 3) at their first two components (N, K): at most 80, and none that would cover another."""
    ax = ax or plt.gca()
    points = features[:, :2]
    places = (points - points.min(axis=0)) / np.maximum(np.ptp(points, axis=0), 1e-9)
    shown: list[int] = []
    for position in np.random.default_rng(SEED).permutation(len(points)):
        free = all(np.abs(places[position] - places[other]).max() > 0.055 for other in shown)
        if free and len(shown) < 80:
            shown.append(position)
            box = OffsetImage(images[position], zoom=0.4)
            ax.add_artist(AnnotationBbox(box, points[position], frameon=False))
    return ax


def clusters(classes: pd.Series, cluster: np.ndarray, ax: Axes | None = None) -> Axes:
    """Draw how many images of each class lie in each cluster (N,), and how well both agree."""
    held = pd.crosstab(classes, pd.Series(cluster, name="cluster"))
    held = held[held.idxmax().sort_values(kind="stable").index].set_axis(range(1, held.shape[1] + 1), axis=1)
    ax = table(held.rename_axis(columns="cluster"), ax=ax)
    ax.set_title(f"{held.shape[1]} clusters: ARI {adjusted_rand_score(classes, cluster):.2f}")
    return ax


def networks(compared: pd.DataFrame, chosen: str, ax: Axes | None = None) -> Axes:
    """Draw each network's score with its interval, the fastest first; beside its name, INT8's time, as estimated.

    `compared` has the columns macro_f1, low, high, int8_ms, and a row for each network.
    """
    rows = compared.sort_values("int8_ms").rename(columns={"macro_f1": "score"})
    colors = [COLORS[1] if name == chosen else COLORS[0] for name in rows.index]
    names = [f"{name}, {time:.1f} ms" for name, time in rows["int8_ms"].items()]
    ax = intervals(rows.set_axis(names), colors, ax=ax)
    ax.set_xlabel("macro-F1 out of fold, 95 % interval; ms for one photo in INT8, estimated")
    ax.set_title("Networks on the same folds; orange: the one to go on with")
    return ax
