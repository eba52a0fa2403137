"""Figures that compare models: every function draws arrays into `ax` (default: the current axes) and returns it."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from utils.plots import COLORS, MODEL_COLORS

OTHERS = COLORS[3:7]


def model_colors(names: Sequence[str]) -> list[str]:
    """Give each model its color, the same everywhere."""
    others = [name for name in names if name not in MODEL_COLORS]
    return [MODEL_COLORS.get(name) or OTHERS[others.index(name) % len(OTHERS)] for name in names]


def caption(label: int, logits: dict[str, np.ndarray], classes: Sequence[str]) -> str:
    """Write an image's class, and below it what each model (name → logits (C,)) takes it for."""
    return "\n".join([classes[label], *(f"{name}: “{classes[each.argmax()]}”" for name, each in logits.items())])


def flips(margin: np.ndarray, flipped: np.ndarray, ax: Axes | None = None) -> Axes:
    """Draw how sure the float model was, as a histogram of margins (N,), and a line for each flipped answer.

    The margin is the distance of the two largest probabilities.
    """
    ax = ax or plt.gca()
    ax.hist(margin, bins=np.linspace(0, 1, 41), color=MODEL_COLORS["onnx"], alpha=0.6, log=True)
    ax.vlines(margin[flipped], 0, 1, transform=ax.get_xaxis_transform(), color=MODEL_COLORS["int8"], lw=1)
    label = f"{flipped.sum()} flipped" if flipped.any() else "no answer flipped"
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    place = {"transform": ax.transAxes, "ha": "right", "va": "top", "bbox": box}
    ax.text(0.98, 0.97, label, color=MODEL_COLORS["int8"], weight="bold", **place)
    ax.set(
        xlabel="margin: largest probability − second largest, of the float model",
        ylabel="images",
        xlim=(0, 1),
        ylim=(0.7, None),
    )
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
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(sorted(latency["task"].unique()), sorted(latency["task"].unique()))
    ax.minorticks_off()
    ax.set_yticks(_ticks(*ax.get_ylim()), [f"{tick:g}" for tick in _ticks(*ax.get_ylim())])
    ax.set(xlabel="images a call", ylabel="ms an image (median)")
    return ax


def _ticks(low: float, high: float) -> list[float]:
    """List 1, 2, 5, 10, … between two numbers."""
    values = [digit * 10.0**power for power in range(-4, 6) for digit in (1, 2, 5)]
    return [value for value in values if low <= value <= high]


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
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(models), frameon=False)
    ax.set(ylabel="macro-F1, test part", ylim=(max(0, scores["low"].min() - 0.05), 1.02))
    return ax


def trade_off(models: pd.DataFrame, budget: tuple[float, float] | None = None, ax: Axes | None = None) -> Axes:
    """Draw macro-F1 with its interval against latency in ms; a marker's area is the file's size.

    `models` has one row per model: latency_ms, macro_f1, low, high, bytes. `budget` is what the replacement may take
    at most and must score at least (ms, macro-F1); what keeps it is shaded.
    """
    ax = ax or plt.gca()
    colors = dict(zip(models.index, model_colors(models.index), strict=True))
    if budget:
        ax.fill_between([0, budget[0]], budget[1], 1.1, color=COLORS[2], alpha=0.08, lw=0)
        ax.plot([0, budget[0], budget[0]], [budget[1], budget[1], 1.1], color=COLORS[2], lw=1, ls=":")
        ax.annotate("budget", (0, 1), (4, -12), xycoords="axes fraction", textcoords="offset points", color=COLORS[2])
    before, steps, far = -np.inf, 0, 0.25 * models["latency_ms"].max()
    low = models["low"].min()
    above = models["macro_f1"].mean() < (low + 1) / 2  # where there is room for labels
    for name, row in models.sort_values("latency_ms").iterrows():
        steps, before = (steps + 1 if row["latency_ms"] - before < far else 0), row["latency_ms"]
        ax.plot([row["latency_ms"]] * 2, [row["low"], row["high"]], color=colors[name], lw=1.5)
        area = 700 * row["bytes"] / models["bytes"].max()
        ax.scatter(row["latency_ms"], row["macro_f1"], s=area, color=colors[name], alpha=0.6)
        ax.annotate(
            f"{name}\n{row['bytes'] / 1000:,.0f} kB",
            (row["latency_ms"], row["macro_f1"]),
            xytext=(8, 18 + 30 * steps if above else -44 - 30 * steps),  # apart, where latencies are close
            textcoords="offset points",
            color=colors[name],
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )
    ax.set(xlabel="latency of one image, ms (median)", ylabel="macro-F1, test part", ylim=(low - 0.05, 1.05))
    ax.set_xlim(0, 1.35 * models["latency_ms"].max())
    return ax
