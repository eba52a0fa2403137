"""Figures from arrays: every function draws into `ax` (default: the current axes) and returns it."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

# Okabe and Ito's palette, told apart by colour-blind people too; the order never changes, so a class keeps its colour
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"]
HANGUL_FONTS = ["Malgun Gothic", "Apple SD Gothic Neo", "AppleGothic", "NanumGothic", "Noto Sans CJK KR"]


def use_style() -> None:
    """Set matplotlib up: no frame, readable sizes, and a font with Hangul behind the default one when there is one."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    fonts = ["DejaVu Sans", *[name for name in HANGUL_FONTS if name in installed]]
    plt.rcParams.update(
        {
            "font.family": fonts,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 11,
            "figure.dpi": 96,
            "savefig.bbox": "tight",
        }
    )


def class_counts(counts: pd.Series, highlight: Sequence[str] = (), ax: Axes | None = None) -> Axes:
    """Draw images per class as bars with their numbers; highlighted classes are dark."""
    ax = ax or plt.gca()
    bars = ax.barh(counts.index, counts, color=[COLORS[1] if name in highlight else COLORS[0] for name in counts.index])
    ax.bar_label(bars, padding=3)
    ax.set(xlabel="images", xlim=(0, counts.max() * 1.12), ylim=(len(counts) - 0.4, -0.6))
    return ax


def image_grid(images: Sequence[np.ndarray], titles: Sequence[str], columns: int, ax: Axes | None = None) -> Axes:
    """Lay images (H, W, 3) out in one axes, row by row, each below its title of one line or more."""
    ax = ax or plt.gca()
    lines = [line for title in titles for line in title.split("\n")]
    rows, band = -(-len(images) // columns), 0.14 * max(1, -(-len(lines) // max(1, len(titles))))
    cell = min(ax.bbox.width / columns, ax.bbox.height / rows / (0.86 + band)) * 72 / ax.figure.dpi  # points
    font_size = np.clip(1.7 * cell / max(map(len, lines), default=1), 4, 8)  # a long title has to fit
    for position, (image, title) in enumerate(zip(images, titles, strict=True)):
        column, top = position % columns, position // columns * (0.86 + band) + band
        ax.imshow(image, extent=(column + 0.08, column + 0.92, top + 0.84, top))
        ax.text(column + 0.5, top - 0.02, title, ha="center", va="bottom", fontsize=font_size)
    ax.set(xlim=(0, columns), ylim=(rows * (0.86 + band), 0), aspect="equal")
    ax.axis("off")
    return ax


def contact_sheet(rows: Sequence[np.ndarray], titles: Sequence[str], columns: int, ax: Axes | None = None) -> Axes:
    """Show sets of images, each (n, S, S, 3), as one row each, its title at the left; `columns` images at most."""
    ax = ax or plt.gca()
    for row, (images, title) in enumerate(zip(rows, titles, strict=True)):
        for column, image in enumerate(images[:columns]):
            ax.imshow(image, extent=(column + 0.03, column + 0.97, row + 0.97, row + 0.03))
        ax.text(-0.1, row + 0.5, title, ha="right", va="center", fontsize=8)
    ax.set(xlim=(0, columns), ylim=(len(rows), 0), aspect="equal")
    ax.axis("off")
    return ax


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


def most_confused(counts: pd.DataFrame, limit: int = 12) -> pd.DataFrame:
    """Keep the classes with most mistakes in confusion counts (C, C); add the rest up as one, so all is legible."""
    if len(counts) <= limit + 1:
        return counts
    mistakes = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
    kept = sorted(mistakes.sort_values(ascending=False, kind="stable").index[:limit])
    rest = f"{len(counts) - limit} others"
    names = np.array([name if name in kept else rest for name in counts.index])
    return counts.groupby(names).sum().T.groupby(names).sum().T.loc[[*kept, rest], [*kept, rest]]


def table(values: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw a table of counts as shaded cells with their numbers (up to 20 rows); shades compare within a row."""
    ax = ax or plt.gca()
    shares = values.to_numpy() / np.maximum(values.to_numpy().sum(axis=1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(values.to_numpy() if len(values) <= 20 else np.empty((0, 0))):
        color = "white" if shares[row, column] > 0.5 else "black"
        ax.text(column, row, f"{count:.0f}", ha="center", va="center", color=color)
    step = -(-values.shape[1] // 20)  # more labels than that would run into each other
    ax.set_xticks(range(0, values.shape[1], step), values.columns[::step])
    ax.set_yticks(range(values.shape[0]), values.index)
    ax.set(xlabel=values.columns.name, ylabel=values.index.name)
    ax.spines[:].set_visible(False)
    return ax


def lower_bounds(bounds: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw what a perfect score would leave open: for each row, one bar per column from the lower bound to 1."""
    ax = ax or plt.gca()
    for (name, lows), height, color in zip(bounds.items(), (0.7, 0.35), (COLORS[5], COLORS[0]), strict=True):
        ax.barh(bounds.index, 1 - lows, left=lows, height=height, color=color, label=name)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    ax.set(xlim=(0, 1), ylim=(len(bounds) - 0.4, -0.6))
    return ax


def intervals(scores: pd.DataFrame, colors: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Draw a point with its interval per row of (score, low, high), the number written beside it."""
    ax = ax or plt.gca()
    for position, (score, low, high) in enumerate(scores[["score", "low", "high"]].to_numpy()):
        color = colors[position % len(colors)] if colors else COLORS[0]
        ax.plot([low, high], [position, position], color=color, lw=2)
        ax.plot(score, position, "o", color=color, ms=7)
        ax.annotate(f"{score:.3f}", (score, position), xytext=(0, 7), textcoords="offset points", ha="center")
    ax.set_yticks(range(len(scores)), scores.index)
    ax.set(ylim=(len(scores) - 0.5, -0.6), xlim=(min(0.5, scores["low"].min() - 0.02), 1.02))
    return ax


def _apart(values: np.ndarray, gap: float) -> np.ndarray:
    """Move ascending values up until they are `gap` apart, so that labels do not overlap."""
    steps = gap * np.arange(len(values))
    return np.maximum.accumulate(values - steps) + steps


def history(epochs: pd.DataFrame, best: int, ax: Axes | None = None) -> Axes:
    """Draw losses and validation macro-F1 by epoch and mark the epoch that is kept."""
    ax = ax or plt.gca()
    lines = {"valid_macro_f1": ("o-", COLORS[0]), "valid_loss": ("s--", COLORS[4]), "train_loss": ("s:", COLORS[7])}
    ends = epochs.iloc[-1].sort_values()
    heights = _apart(ends.to_numpy(), 0.09 * max(1, epochs.max().max()))
    for name, height in zip(ends.index, heights, strict=True):
        style, color = lines[name]
        ax.plot(epochs.index, epochs[name], style, color=color)
        if np.isfinite(ends[name]):
            label = name.replace("valid_macro_f1", "validation macro-F1").replace("_loss", " loss")
            ax.annotate(label, (epochs.index[-1], height), (8, 0), textcoords="offset points", color=color, va="center")
    ax.axvline(best, color=COLORS[1], lw=1, ls=":")
    offset, side = ((-4, 4), "right") if best else ((4, 4), "left")
    ax.annotate(f"kept: epoch {best}", (best, 0.5), offset, textcoords="offset points", ha=side, color=COLORS[1])
    ax.set_xticks(epochs.index)
    ax.set(xlabel="epoch", ylim=(0, 1.1 * max(1, epochs[list(lines)].max().max())))
    return ax


def differences(rows: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw per row a difference with its interval (difference, low, high), and the line of none."""
    ax = ax or plt.gca()
    for position, (difference, low, high) in enumerate(rows[["difference", "low", "high"]].to_numpy()):
        color = COLORS[2] if low > 0 else COLORS[1] if high < 0 else COLORS[7]
        ax.plot([low, high], [position, position], color=color, lw=2)
        ax.plot(difference, position, "o", color=color, ms=7)
        ax.annotate(f"{difference:+.3f}", (difference, position), (0, 7), textcoords="offset points", ha="center")
    ax.axvline(0, color="black", lw=0.8)
    ax.set_yticks(range(len(rows)), rows.index)
    ax.set(ylim=(len(rows) - 0.5, -0.6))
    return ax


def reliability(tables: dict[str, pd.DataFrame], ax: Axes | None = None) -> Axes:
    """Draw accuracy against confidence, a line per table (confidence, accuracy), and the diagonal that is right."""
    ax = ax or plt.gca()
    ax.plot([0, 1], [0, 1], color="black", lw=0.8)
    for (name, table), color in zip(tables.items(), (COLORS[7], COLORS[0]), strict=False):
        ax.plot(table["confidence"], table["accuracy"], "o-", color=color, label=name)
    ax.legend(frameon=False, loc="upper left")
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    return ax


def coverage(rows: pd.DataFrame, threshold: float, accuracy: float, ax: Axes | None = None) -> Axes:
    """Draw accuracy against coverage; mark the `accuracy` asked for and what the `threshold` leaves."""
    ax = ax or plt.gca()
    ax.plot(rows["coverage"], rows["accuracy"], color=COLORS[0])
    ax.axhline(accuracy, color=COLORS[7], lw=0.8, ls=":")
    kept = rows[rows["threshold"] >= threshold].iloc[-1:]
    ax.plot(kept["coverage"], kept["accuracy"], "o", color=COLORS[1])
    for place in kept[["coverage", "accuracy"]].to_numpy():
        label = f"sure of {threshold:.2f} or more"
        offset, side = ((-6, -14), "right") if place[0] > 0.5 else ((6, -14), "left")
        ax.annotate(label, place, offset, textcoords="offset points", ha=side, color=COLORS[1])
    ax.set(xlabel="share of images answered", ylabel="accuracy of the answers", xlim=(0, 1.02))
    return ax
