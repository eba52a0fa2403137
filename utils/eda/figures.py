"""EDA's figures: every function draws arrays into `ax` (default: the current axes) and returns it."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.ticker import LogLocator, NullLocator
from sklearn.metrics import adjusted_rand_score

from utils.config import SEED
from utils.plots import COLORS, table


def scatter(features: np.ndarray, names: pd.Series, ax: Axes | None = None) -> Axes:
    """Draw the first two principal components (N, K) colored by name, each name amid its points (up to 20 names)."""
    ax = ax or plt.gca()
    known = np.unique(names)
    for position, name in enumerate(known):
        color = COLORS[position % len(COLORS)]
        own = features[names == name]
        ax.scatter(own[:, 0], own[:, 1], s=14, color=color, alpha=0.6, linewidths=0)
        box = {"boxstyle": "round", "facecolor": "white", "edgecolor": color, "alpha": 0.8}
        if len(known) <= 20:
            x, y = np.median(own[:, :2], axis=0)
            ax.text(x, y, name, ha="center", va="center", color=color, weight="bold", bbox=box, zorder=1000)
    variances = features.var(axis=0)
    first, second = variances[:2] / (variances.sum() or 1)
    ax.set(xlabel=f"first component ({first:.0%} of the variance)", ylabel=f"second component ({second:.0%})")
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


def networks(compared: pd.DataFrame, chosen: str, budget_ms: float | None = None, ax: Axes | None = None) -> Axes:
    """Draw each network's score, with its interval, against the time that INT8 is estimated to take; budget as a line.

    `compared` has the columns macro_f1, low, high, int8_ms, and a row for each network.
    """
    ax = ax or plt.gca()
    for name, row in compared.iterrows():
        color = COLORS[1] if name == chosen else COLORS[0]
        reach = [[row["macro_f1"] - row["low"]], [row["high"] - row["macro_f1"]]]
        ax.errorbar(row["int8_ms"], row["macro_f1"], yerr=reach, fmt="o", color=color, capsize=3)
        place = row["int8_ms"], row["high"]
        ax.annotate(name, place, (0, 4), textcoords="offset points", color=color, fontsize=8, rotation=30)
    if budget_ms:
        ax.axvline(budget_ms, color=COLORS[6], lw=1, ls=":")
    label = "ms for one photo in INT8, estimated" + ("; dotted: budget" if budget_ms else "")
    ax.set(xscale="log", xlabel=label, ylabel="macro-F1 out of fold")
    ax.set_xlim(0.7 * compared["int8_ms"].min(), 4 * compared["int8_ms"].max())  # room for the last name, and above
    bottom = compared["low"].min() - 0.05
    ax.set_ylim(bottom, compared["high"].max() + 0.15)
    ax.set_yticks([tick for tick in ax.get_yticks() if bottom <= tick <= 1])
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(NullLocator())
    return ax
