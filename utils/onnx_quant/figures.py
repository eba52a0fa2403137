"""Figures of INT8 candidates: every function draws arrays into `ax` (default: the current axes) and returns it."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from utils.plots import COLORS, MODEL_COLORS


def candidates(rows: pd.DataFrame, chosen: str, within: pd.Series, fp32_ms: float, ax: Axes | None = None) -> Axes:
    """Draw INT8 candidates: SQNR against latency in ms, hollow outside the budget; the numbers are the table's rows.

    `rows` has latency_ms and sqnr_db per candidate; a line marks fp32's latency.
    """
    ax = ax or plt.gca()
    for number, (name, row) in enumerate(rows.iterrows(), start=1):
        place = row["latency_ms"], row["sqnr_db"]
        color, top = (MODEL_COLORS["int8"], 3) if name == chosen else (COLORS[7], 2)
        ax.scatter(*place, s=50, color=color if within[name] else "none", edgecolors=color, zorder=top)
        label, offset = (f"{number}: {name}", (-4, 9)) if name == chosen else (str(number), (5, -9))
        ax.annotate(label, place, xytext=offset, textcoords="offset points", color=color, zorder=top)
    ax.axvline(fp32_ms, color=MODEL_COLORS["onnx"], lw=1, ls=":")
    ax.annotate(" fp32", (fp32_ms, 0.02), xycoords=("data", "axes fraction"), color=MODEL_COLORS["onnx"])
    ax.margins(y=0.12)
    ax.set(xlabel="latency of one image, ms (median)", ylabel="SQNR of the logits, dB", xlim=(0, None))
    return ax


def spread(draws: pd.DataFrame, column: str, ax: Axes | None = None) -> Axes:
    """Draw a point per random draw: `column` against the number of images drawn."""
    ax = ax or plt.gca()
    sizes = sorted(draws["images"].unique())
    for position, size in enumerate(sizes):
        values = draws.loc[draws["images"] == size, column]
        offsets = np.linspace(-0.15, 0.15, len(values)) if len(values) > 1 else [0]
        ax.scatter(position + np.asarray(offsets), values, s=18, color=MODEL_COLORS["int8"], alpha=0.6, linewidths=0)
    ax.set_xticks(range(len(sizes)), sizes)
    ax.set(xlabel="calibration images", ylabel=column)
    return ax
