"""Figures of INT8 candidates: every function draws arrays into `ax` (default: the current axes) and returns it."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from utils.plots import COLORS, MODEL_COLORS


def candidates(table: pd.DataFrame, chosen: int, ax: Axes | None = None) -> Axes:
    """Draw INT8 files: SQNR against latency in ms, hollow outside the budget, with their rows' numbers.

    Columns: recipe, latency_ms, sqnr_db, within_budget. The first row is the float file's: a line marks its latency.
    """
    ax = ax or plt.gca()
    for number, row in table.iloc[1:].iterrows():
        color = MODEL_COLORS["int8"] if number == chosen else COLORS[7]
        place = (row["latency_ms"], row["sqnr_db"])
        ax.scatter(*place, s=50, color=color if row["within_budget"] else "none", edgecolors=color, zorder=2)
        label = f"{number}: {row['recipe']}" if number == chosen else str(number)
        offset = (-4, 9) if number == chosen else (5, -9)
        ax.annotate(label, place, xytext=offset, textcoords="offset points", color=color, zorder=3)
    fp32_ms = table["latency_ms"].iloc[0]
    ax.axvline(fp32_ms, color=MODEL_COLORS["onnx"], lw=1, ls=":")
    ax.annotate(" fp32", (fp32_ms, 0.02), xycoords=("data", "axes fraction"), color=MODEL_COLORS["onnx"])
    ax.margins(y=0.12)
    ax.set(xlabel="latency of one image, ms (median)", ylabel="SQNR of the logits, dB", xlim=(0, None))
    ax.set_title("Recipes, by their numbers in the table; hollow: outside the budget")
    return ax
