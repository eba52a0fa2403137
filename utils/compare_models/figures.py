"""Figures that compare models: every function draws arrays into `ax` (default: the current axes) and returns it."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from utils import plots
from utils.compare_models.paired import Shift, flip_ratios
from utils.plots import COLORS, MODEL_COLORS

ABOVE = {"loc": "lower left", "bbox_to_anchor": (0, 1), "frameon": False}  # of a legend
use_style = plots.use_style  # the notebook draws with this module alone


def model_colors(names: Sequence[str]) -> list[str]:
    """Give each model its color, the same everywhere."""
    others = [name for name in names if name not in MODEL_COLORS]
    return [MODEL_COLORS.get(name) or COLORS[3 + others.index(name) % 4] for name in names]


def quality(scores: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw macro-F1 with its interval, a row of `scores` (score, low, high) for each model, and for the folds."""
    parts = [name if name == "out of fold" else f"{name}, test part" for name in scores.index]
    ax = plots.intervals(scores.set_axis(parts), model_colors(scores.index), ax=ax)
    ax.set(xlabel="macro-F1, 95 % interval")
    return ax


def disagreements(
    pictures: Sequence[np.ndarray],
    names: Sequence[str],
    logits: Sequence[dict[str, np.ndarray]],
    classes: Sequence[str],
    ax: Axes | None = None,
) -> Axes:
    """Lay out images (H, W, 3), five in a row, below their class and what each model (name → logits (C,)) predicts."""
    captions = []
    for name, of_models in zip(names, logits, strict=True):
        predictions = [f"{model}: “{classes[scores.argmax()]}”" for model, scores in of_models.items()]
        captions.append("\n".join([name, *predictions]))
    return plots.image_grid(pictures, captions, columns=min(5, len(pictures)), ax=ax)


def flips(shift: Shift, ax: Axes | None = None) -> Axes:
    """Draw, for each image and the class it is nearest to flip to, the margin and how much of it INT8 used up."""
    ax = ax or plt.gca()
    rows, (_, nearest_classes) = np.arange(len(shift.before)), flip_ratios(shift)
    flipped = shift.before != shift.after
    margins, moves = shift.margins[rows, nearest_classes], shift.moves[rows, nearest_classes]
    high = 1.5 * max(margins.max(), moves.max())
    low = high / 1e4
    margins, moves = np.maximum(margins, low), np.maximum(moves, low)  # what moved away from all lies at the bottom
    ax.plot([low, high], [low, high], color="black", lw=1)
    ax.scatter(margins[~flipped], moves[~flipped], 8, MODEL_COLORS["onnx"], alpha=0.6, lw=0)
    ax.scatter(margins[flipped], moves[flipped], 50, MODEL_COLORS["int8"], edgecolors="black", zorder=3)
    label = f"above the line a prediction flips: {flipped.sum() or 'none'} did"
    ax.text(0.02, 0.97, label, transform=ax.transAxes, va="top")
    ax.set_title("How near each prediction was to flipping")
    ax.set(xlabel="margin of the float model, in logits", ylabel="INT8's move towards\nanother class, in logits")
    ax.set(xscale="log", yscale="log", ylim=(low * 0.6, high), xlim=(margins.min() * 0.6, high))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    return ax


def throughput(latency: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw ms per image against the batch size; `latency` has model, task (batch size), p50, low, high."""
    ax = ax or plt.gca()
    names = list(latency["model"].unique())
    for name, color in zip(names, model_colors(names), strict=True):
        rows = latency[latency["model"] == name]
        batch = rows["task"].to_numpy(float)
        ax.fill_between(batch, rows["low"] / batch, rows["high"] / batch, color=color, alpha=0.2, lw=0)
        ax.plot(batch, rows["p50"] / batch, "o-", color=color, label=name)
    ax.legend(ncols=4, **ABOVE)
    ax.set_xscale("log", base=2)
    ax.set_title("Time of an image, by images in a call", pad=24)  # above the legend
    ax.set(yscale="log", xlabel="images a call", ylabel="ms an image (median)")
    ax.set_xticks(sorted(latency["task"].unique()), sorted(latency["task"].unique()))
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()
    return ax


def robustness(scores: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw macro-F1 with its interval per corruption and model; a row each: corruption, model, score, low, high."""
    ax = ax or plt.gca()
    corruptions, models = list(scores["corruption"].unique()), list(scores["model"].unique())
    for number, (name, color) in enumerate(zip(models, model_colors(models), strict=True)):
        rows = scores[scores["model"] == name]
        places = np.arange(len(rows)) + (number - (len(models) - 1) / 2) * 0.16
        ax.vlines(places, rows["low"], rows["high"], color=color, lw=2)
        ax.plot(places, rows["score"], "o", color=color, ms=6, label=name)
    ax.set_xticks(range(len(corruptions)), corruptions)
    ax.legend(ncols=len(models), **ABOVE)
    ax.set_title("Scores where photos have faults, with 95 % intervals", pad=24)
    ax.set(ylabel="macro-F1, test part", ylim=(max(0, scores["low"].min() - 0.05), 1.02))
    return ax


def trade_off(models: pd.DataFrame, budget: tuple[float, float], axes: Sequence[Axes]) -> Sequence[Axes]:
    """Draw each model's score, latency_ms (both with low and high) and bytes, in three `axes` side by side.

    The dotted lines are the `budget`: what the replacement may take at most and must score at least (ms, macro-F1).
    """
    colors, kilobytes = model_colors(models.index), models["bytes"] / 1000
    plots.intervals(models, colors, ax=axes[0])
    times = models[["latency_ms", "latency_low", "latency_high"]].set_axis(["score", "low", "high"], axis=1)
    plots.intervals(times, colors, "{:.2f}", ax=axes[1])
    axes[2].bar_label(axes[2].barh(range(len(models)), kilobytes, 0.5, color=colors), fmt="{:,.0f}", padding=3)
    for ax, limit in zip(axes[:2], budget[::-1], strict=True):
        ax.axvline(limit, color=COLORS[7], lw=1, ls=":")
    axes[0].set(xlabel="macro-F1, test part", title="Score")
    axes[1].set(xlabel="ms for one image", title="Time", xlim=(0, 1.1 * times["high"].max()))
    axes[2].set(xlabel="kB", title="Size", xlim=(0, 1.25 * kilobytes.max()))
    return axes
