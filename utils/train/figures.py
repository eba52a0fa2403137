"""Training's figures: every function draws arrays into `ax` (default: the current axes) and returns it."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from utils.plots import COLORS, apart, intervals


def history(epochs: pd.DataFrame, best: int, ax: Axes | None = None) -> Axes:
    """Draw losses and validation macro-F1 by epoch and mark the epoch that is kept; without any epoch, write them."""
    ax = ax or plt.gca()
    if len(epochs) == 1:
        f1, loss = epochs.loc[0, ["valid_macro_f1", "valid_loss"]]
        ax.text(0, 0.5, f"Only the last layer was fitted: validation macro-F1 {f1:.3f}, loss {loss:.3f}")
        ax.axis("off")
        return ax
    lines = {
        "valid_macro_f1": ("validation macro-F1", "o-", COLORS[0]),
        "valid_loss": ("validation loss", "s--", COLORS[4]),
        "train_loss": ("training loss", "s:", COLORS[7]),
    }
    top = max(1, epochs.max().max())
    ends = epochs.iloc[-1].sort_values().dropna()  # epoch 0 has no training loss
    for name, height in zip(ends.index, apart(ends.to_numpy(), 0.09 * top), strict=True):
        label, style, color = lines[name]
        ax.plot(epochs.index, epochs[name], style, color=color)
        ax.annotate(label, (epochs.index[-1], height), (8, 0), textcoords="offset points", color=color, va="center")
    ax.axvline(best, color=COLORS[1], lw=1, ls=":")
    ax.annotate(f"kept: epoch {best}", (best, 1.12 * top), ha="center", color=COLORS[1], annotation_clip=False)
    ax.set_xticks(epochs.index)
    ax.set(xlabel="epoch", ylabel="macro-F1, loss", ylim=(-0.05 * top, 1.1 * top))
    return ax


def differences(rows: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw per row a difference with its interval (difference, low, high): green above 0, orange below, else grey."""
    colors = np.select([rows["low"] > 0, rows["high"] < 0], [COLORS[2], COLORS[1]], COLORS[7])
    ax = intervals(rows.rename(columns={"difference": "score"}), colors, "{:+.3f}", ax)
    ax.axvline(0, color="black", lw=0.8)
    ax.autoscale(axis="x")
    return ax


def reliability(tables: dict[str, pd.DataFrame], ax: Axes | None = None) -> Axes:
    """Draw accuracy against confidence, a line per table (confidence, accuracy), and the diagonal that is right."""
    ax = ax or plt.gca()
    ax.plot([0, 1], [0, 1], color="black", lw=0.8)
    for (name, table), color in zip(tables.items(), (COLORS[7], COLORS[0]), strict=False):
        ax.plot(table["confidence"], table["accuracy"], "o-", color=color, label=name)
    ax.legend(frameon=False)
    least = min(table[["confidence", "accuracy"]].min().min() for table in tables.values()) - 0.05
    ax.set(
        title="Before and after the temperature",
        xlabel="confidence",
        ylabel="accuracy",
        xlim=(least, 1.02),
        ylim=(least, 1.02),
    )
    return ax


def coverage(rows: pd.DataFrame, threshold: float, accuracy: float, ax: Axes | None = None) -> Axes:
    """Draw accuracy against coverage; mark the `accuracy` that is wanted and what the `threshold` leaves."""
    ax = ax or plt.gca()
    ax.plot(rows["coverage"], rows["accuracy"], color=COLORS[0])
    ax.axhline(accuracy, color=COLORS[7], lw=0.8, ls=":")
    for _, kept in rows[rows["threshold"] >= threshold].iloc[-1:].iterrows():
        ax.plot(kept["coverage"], kept["accuracy"], "o", color=COLORS[1])
        side = "right" if kept["coverage"] > 0.5 else "left"
        label = f"  sure of {threshold:.2f} or more  " if threshold else "  all predictions  "
        place = (kept["coverage"], kept["accuracy"])
        ax.annotate(label, place, (0, -14), textcoords="offset points", ha=side, color=COLORS[1])
    ax.set(title="Without the least sure", xlabel="coverage, share of all images", ylabel="accuracy", xlim=(0, 1.02))
    return ax


def learning_curve(measured: list[dict], extended: list[dict], ax: Axes | None = None) -> Axes:
    """Draw macro-F1 (rows of images, score, low, high), and what extends it (rows of images, macro_f1, low, high)."""
    ax, measured, extended = ax or plt.gca(), pd.DataFrame(measured), pd.DataFrame(extended)
    ax.fill_between(measured["images"], measured["low"], measured["high"], color=COLORS[0], alpha=0.2, lw=0)
    ax.plot(measured["images"], measured["score"], "o-", color=COLORS[0])
    ax.fill_between(extended["images"], extended["low"], extended["high"], color=COLORS[4], alpha=0.25, lw=0)
    ax.plot(extended["images"][1:], extended["macro_f1"][1:], "o", mfc="white", color=COLORS[4])
    ax.plot(extended["images"], extended["macro_f1"], "--", color=COLORS[4], zorder=1)
    for place in [*measured[["images", "score"]].to_numpy(), *extended[["images", "macro_f1"]][1:].to_numpy()]:
        ax.annotate(f"{place[1]:.2f}", place, (0, -14), textcoords="offset points", ha="center")
    times = (extended["images"][1:] / extended["images"][0]).map("\n{:g}×".format)
    ticks = [f"{count:.0f}" for count in measured["images"]]
    ticks += [f"{count:.0f}{more}" for count, more in zip(extended["images"][1:], times, strict=True)]
    ax.set_xscale("log")
    ax.set_xticks([*measured["images"], *extended["images"][1:]], ticks)
    ax.set_xticks([], minor=True)
    ax.set(xlabel="images per class to train on", ylabel="macro-F1 on groups never seen")
    ax.set_title("Measured, and extended (dashed), with 95 % intervals")
    bottom, _ = ax.set_ylim(top=1.02)
    ax.set_yticks([tick for tick in ax.get_yticks() if bottom <= tick <= 1])  # none above a perfect score
    return ax
