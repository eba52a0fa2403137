"""EDA's figures: every function draws arrays into `ax` (default: the current axes) and returns it."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from utils.plots import COLORS


def scatter(points: np.ndarray, names: Sequence[str], colors: Sequence[str] = COLORS, ax: Axes | None = None) -> Axes:
    """Draw points (N, 2) coloured by name, each name written at the middle of its points (up to 20 names)."""
    ax = ax or plt.gca()
    names = np.asarray(names)
    for position, name in enumerate(np.unique(names)):
        color = colors[position % len(colors)]
        ax.scatter(*points[names == name].T, s=14, color=color, alpha=0.6, linewidths=0)
        middle = np.median(points[names == name], axis=0)
        box = {"boxstyle": "round", "facecolor": "white", "edgecolor": color, "alpha": 0.8}
        if len(np.unique(names)) <= 20:
            ax.annotate(str(name), middle, ha="center", va="center", color=color, weight="bold", bbox=box, zorder=1000)
    return ax


def thumbnails(
    points: np.ndarray, images: np.ndarray, count: int = 80, zoom: float = 0.4, ax: Axes | None = None
) -> Axes:
    """Draw images (N, S, S, 3) at their points (N, 2): at most `count`, and none that would cover another."""
    ax = ax or plt.gca()
    spread = (points - points.min(axis=0)) / np.maximum(np.ptp(points, axis=0), 1e-9)
    shown: list[int] = []
    for position in range(len(points)):
        free = all(np.abs(spread[position] - spread[other]).max() > 0.055 for other in shown)
        if free and len(shown) < count:
            shown.append(position)
            box = OffsetImage(images[position], zoom=zoom)
            ax.add_artist(AnnotationBbox(box, points[position], frameon=False))
    return ax


def lower_bounds(bounds: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw what a perfect score would leave open: for each row, one bar per column from the lower bound to 1."""
    ax = ax or plt.gca()
    for (name, lows), height, color in zip(bounds.items(), (0.7, 0.35), (COLORS[5], COLORS[0]), strict=True):
        ax.barh(bounds.index, 1 - lows, left=lows, height=height, color=color, label=name)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    ax.set(xlim=(0, 1), ylim=(len(bounds) - 0.4, -0.6))
    return ax
