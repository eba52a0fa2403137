"""Figures from arrays: every function draws into `ax` (default: the current axes) and returns it."""

import math
import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes

# Okabe and Ito's palette, told apart by colour-blind people too; the order never changes, so a class keeps its colour
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"]
MODEL_COLORS = {"pytorch": COLORS[0], "onnx": COLORS[2], "int8": COLORS[1]}  # the same in every notebook
HANGUL_FONTS = ["Malgun Gothic", "Apple SD Gothic Neo", "AppleGothic", "NanumGothic", "Noto Sans CJK KR"]


def use_style() -> None:
    """Set matplotlib up: no frame, readable sizes, and a font with Hangul behind the default one when there is one."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    plt.rcParams.update(
        {
            "font.family": ["DejaVu Sans", *[name for name in HANGUL_FONTS if name in installed]],
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 11,
            "figure.dpi": 96,
            "savefig.bbox": "tight",
            "text.parse_math": False,  # a class may be called $5 or a$_b$; ticks of logarithmic axes need a format then
        }
    )


def bars(amounts: pd.Series, highlight: Sequence[str] = (), ax: Axes | None = None) -> Axes:
    """Draw a bar with its number for each row; the rows named by `highlight` have a color of their own."""
    ax = ax or plt.gca()
    colors = [COLORS[1] if name in highlight else COLORS[0] for name in amounts.index]
    ax.bar_label(ax.barh(amounts.index, amounts, color=colors), padding=3)
    ax.set(xlabel="images", xlim=(0, amounts.max() * 1.12), ylim=(len(amounts) - 0.4, -0.6))
    return ax


def image_grid(images: Sequence[np.ndarray], titles: Sequence[str], columns: int, ax: Axes | None = None) -> Axes:
    """Lay images (H, W, 3) out in one axes, row by row, each below its title of one line or more."""
    ax = ax or plt.gca()
    rows, points = math.ceil(len(images) / columns) or 1, 72 / ax.figure.dpi  # of a pixel
    width, height = ax.bbox.width / columns * points, ax.bbox.height / rows * points  # at hand for a cell
    fitting = max(12, int(min(width, height / 1.2) / 5.2))  # letters of 7 points beside each other
    titles = ["\n".join(textwrap.fill(line, fitting) for line in title.split("\n")) for title in titles]
    lines = max((title.count("\n") + 1 for title in titles), default=1)
    letters = max((len(line) for title in titles for line in title.split("\n")), default=1)
    title_height = max(0.14, 11 / width) * lines  # in units of a cell's width
    row_height = 0.86 + title_height
    font_size = np.clip(1.5 * min(width, height / row_height) / letters, 5, 8)  # a long title has to fit
    for position, (image, title) in enumerate(zip(images, titles, strict=True)):
        row, column = divmod(position, columns)
        top = row * row_height + title_height
        ax.imshow(image, extent=(column + 0.08, column + 0.92, top + 0.84, top))
        ax.text(column + 0.5, top - 0.02, title, ha="center", va="bottom", fontsize=font_size)
    ax.set(xlim=(0, columns), ylim=(rows * row_height, 0), aspect="equal")
    ax.axis("off")
    return ax


def contact_sheet(rows: Sequence[np.ndarray], titles: Sequence[str], columns: int, ax: Axes | None = None) -> Axes:
    """Show each set of images (n, S, S, 3) as a row of at most `columns` images, with its title at the left."""
    ax = ax or plt.gca()
    for row, (images, title) in enumerate(zip(rows, titles, strict=True)):
        for column, image in enumerate(images[:columns]):
            ax.imshow(image, extent=(column + 0.03, column + 0.97, row + 0.97, row + 0.03))
        ax.text(-0.1, row + 0.5, title, ha="right", va="center", fontsize=8)
    ax.set(xlim=(0, columns), ylim=(len(rows), 0), aspect="equal")
    ax.axis("off")
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
    counts = values.to_numpy()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    if len(counts) <= 20:
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if shares[row, column] > 0.5 else "black"
            ax.text(column, row, f"{count:.0f}", ha="center", va="center", color=color)
    step = math.ceil(values.shape[1] / 20)  # more labels than that would run into each other
    ax.set_xticks(range(0, values.shape[1], step), values.columns[::step])
    if max(len(str(name)) for name in values.columns) * len(values.columns) > 45:  # letters in a row
        ax.tick_params("x", rotation=30)
    ax.set_yticks(range(values.shape[0]), values.index)
    ax.set(xlabel=values.columns.name, ylabel=values.index.name)
    ax.spines[:].set_visible(False)
    return ax


def apart(values: np.ndarray, gap: float) -> np.ndarray:
    """Move ascending values up until they are `gap` apart, so that labels do not overlap."""
    steps = gap * np.arange(len(values))
    return np.maximum.accumulate(values - steps) + steps


def intervals(
    scores: pd.DataFrame, colors: Sequence[str] = COLORS[:1], number: str = "{:.3f}", ax: Axes | None = None
) -> Axes:
    """Draw a point with its interval per row of (score, low, high), the number written beside it; colors repeat."""
    ax = ax or plt.gca()
    for position, (score, low, high) in enumerate(scores[["score", "low", "high"]].to_numpy()):
        color = colors[position % len(colors)]
        ax.plot([low, high], [position, position], color=color, lw=2, clip_on=False)
        ax.plot(score, position, "o", color=color, ms=7, clip_on=False)
        ax.annotate(number.format(score), (score, position), xytext=(0, 7), textcoords="offset points", ha="center")
    ax.set_yticks(range(len(scores)), scores.index)
    ax.set(ylim=(len(scores) - 0.5, -0.6), xlim=(scores["low"].min() - 0.05, 1))
    return ax
