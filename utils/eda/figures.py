"""EDA's figures: every function draws arrays into `ax` (default: the current axes) and returns it."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.ticker import LogLocator, NullLocator

from utils.plots import COLORS


def scatter(points: np.ndarray, names: pd.Series, ax: Axes | None = None) -> Axes:
    """Draw points (N, 2) coloured by name, each name written at the middle of its points (up to 20 names)."""
    ax = ax or plt.gca()
    known = np.unique(names)
    for position, name in enumerate(known):
        color, own = COLORS[position % len(COLORS)], points[names == name]
        ax.scatter(own[:, 0], own[:, 1], s=14, color=color, alpha=0.6, linewidths=0)
        box = {"boxstyle": "round", "facecolor": "white", "edgecolor": color, "alpha": 0.8}
        if len(known) <= 20:
            x, y = np.median(own, axis=0)
            ax.text(x, y, name, ha="center", va="center", color=color, weight="bold", bbox=box, zorder=1000)
    return ax


def thumbnails(points: np.ndarray, images: np.ndarray, ax: Axes | None = None) -> Axes:
    """Draw images (N, S, S, 3) at their points (N, 2): at most 80, and none that would cover another."""
    ax = ax or plt.gca()
    spread = (points - points.min(axis=0)) / np.maximum(np.ptp(points, axis=0), 1e-9)
    shown: list[int] = []
    for position in range(len(points)):
        free = all(np.abs(spread[position] - spread[other]).max() > 0.055 for other in shown)
        if free and len(shown) < 80:
            shown.append(position)
            box = OffsetImage(images[position], zoom=0.4)
            ax.add_artist(AnnotationBbox(box, points[position], frameon=False))
    return ax


def lower_bounds(bounds: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw what a perfect score would leave open: a bar for each row and column (two), from the lower bound to 1."""
    ax = ax or plt.gca()
    outer, inner = bounds.columns
    ax.barh(bounds.index, 1 - bounds[outer], left=bounds[outer], height=0.7, color=COLORS[5], label=outer)
    ax.barh(bounds.index, 1 - bounds[inner], left=bounds[inner], height=0.35, color=COLORS[0], label=inner)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    ax.set(xlim=(0, 1), ylim=(len(bounds) - 0.4, -0.6))
    return ax


def networks(table: pd.DataFrame, chosen: str, budget_ms: float | None = None, ax: Axes | None = None) -> Axes:
    """Draw each network's score, with its interval, against the time that INT8 is estimated to take; budget as a line.

    `table` has the columns macro_f1, low, high, int8_ms, and a row for each network.
    """
    ax = ax or plt.gca()
    for name, row in table.iterrows():
        color = COLORS[1] if name == chosen else COLORS[0]
        reach = [[row["macro_f1"] - row["low"]], [row["high"] - row["macro_f1"]]]
        ax.errorbar(row["int8_ms"], row["macro_f1"], yerr=reach, fmt="o", color=color, capsize=3)
        place = row["int8_ms"], row["high"]
        ax.annotate(name, place, (0, 3), textcoords="offset points", color=color, rotation=40, fontsize=8)
    if budget_ms:
        ax.axvline(budget_ms, color=COLORS[6], lw=1, ls=":")
    ax.set(xscale="log", xlabel="ms for one photo in INT8, estimated; dotted: budget", ylabel="macro-F1 out of fold")
    ax.set_xlim(0.7 * table["int8_ms"].min(), 2 * table["int8_ms"].max())
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(NullLocator())
    return ax
