"""Which network to go on with, and how sure that is."""

import shlex
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from utils.config import CHECKPOINTS, ROOT, listing, relative, require
from utils.eda.networks import Photos, at_hand, choose_photos, pair, rivals, score_networks, tabulate
from utils.files import remembered
from utils.intervals import resample_weights
from utils.metrics import weighted_macro_f1

TIE = 0.01  # macro-F1 below the best one's: so little is no reason for a slower network
HINT_PHOTOS, CHOICE_PHOTOS = 300, 1000  # to compare on, at most: in every run, and where the choice depends on it


class Wishes(NamedTuple):
    """What the user asks for: further networks to compare, and what one photo in INT8 may cost.

    `networks` are names with commas between. If it is None, no network is compared with the one that is named.
    """

    networks: str | None = ""
    budget_ms: float | None = None
    budget_kb: float | None = None


class Comparison(NamedTuple):
    """The network to go on with, the table behind it, what it says, and a hint if another would do better."""

    arch: str
    table: pd.DataFrame
    sentence: str
    hint: str = ""


def compare(arch: str, folder: Path, index: pd.DataFrame, run: Path, wishes: Wishes) -> Comparison:
    """Choose a network if `arch` is "auto", and else ask whether another one at hand would do better beyond doubt.

    All are judged by a linear classifier on frozen features, out of fold, without the test part; see `score_networks`.
    The table has, beside the columns of `tabulate`, those of `pair`, with the best network within the budget or with
    `arch`. What was found is remembered in the folder `run`.
    """
    choosing = arch == "auto"
    listed = (wishes.networks or "").replace(",", " ").split()
    others = [] if wishes.networks is None else rivals(arch, listed)
    names = at_hand(listed) if choosing else [arch, *others]
    photos = choose_photos(folder, index, CHOICE_PHOTOS if choosing else HINT_PHOTOS)
    parts = names, photos.index[["path", "sha256", "group"]].to_csv(), CHECKPOINTS / "conv_net.pth"
    found = remembered(run / "networks.json", parts, partial(score_networks, names, photos, run / "features"))
    table = tabulate(found, photos)
    if not choosing:
        table = table.join(pair(found, photos, arch))
        hint = describe_hint(arch, table, command(folder, run))
        nothing = (
            f"Not better than {arch} beyond doubt, on {len(photos.index)} photos: {listing(others) or 'none asked'}."
        )
        return Comparison(arch, table, hint or nothing, hint)
    table["within"] = within_budget(table, wishes)
    table = table.join(pair(found, photos, best_within(table)))
    chosen = choose(table)
    flattery = optimism(found, photos, table)
    return Comparison(chosen, table, describe_choice(chosen, table, flattery))


def within_budget(table: pd.DataFrame, wishes: Wishes) -> pd.Series:
    """Tell which networks one can afford, by what INT8 is estimated to cost. Raises InputError if there is none."""
    within = table["int8_ms"] <= (wishes.budget_ms or np.inf)
    within &= table["int8_bytes"] / 1000 <= (wishes.budget_kb or np.inf)
    require(
        within.any(),
        f"no network fits BUDGET_MS {wishes.budget_ms} and BUDGET_KB {wishes.budget_kb}: as INT8, the fastest takes "
        f"about {table['int8_ms'].min():.2f} ms and the smallest {table['int8_bytes'].min() / 1000:.0f} kB",
    )
    return within


def best_within(table: pd.DataFrame) -> str:
    """Name the network `within` the budget that has the highest score."""
    return str(table.loc[table["within"], "macro_f1"].idxmax())


def choose(table: pd.DataFrame) -> str:
    """Name the fastest network `within` the budget that is as good as the best one there.

    As good is what scores at most 0.01 less and is not shown to be worse. With few photos nothing is shown to be worse,
    and with many a loss is that does not matter; so both count.
    """
    good = table["within"] & (table["beyond"] >= -TIE) & (table["at_best"] >= 0)
    return str(table.loc[good, "int8_ms"].idxmin())


def optimism(found: dict[str, dict], photos: Photos, table: pd.DataFrame) -> float:
    """Estimate by how much the chosen network's score is too good, because it was chosen by this score.

    The optimism of Efron (1983): in each resample of the photos, by group, a network is chosen anew. How much better
    does it look there than on all photos, beyond what resampling does to the score of any network?
    """
    labels, within = photos.labels, table["within"].to_numpy()
    weights = resample_weights(labels, photos.groups)
    answers = [np.array(row["answers"]) for row in found.values()]
    scores = np.stack([weighted_macro_f1(labels, answer, labels.max() + 1, weights) for answer in answers])
    gains = scores - table[["macro_f1"]].to_numpy()
    near = within[:, None] & (scores >= scores[within].max(axis=0) - TIE)
    chosen = np.where(near, table[["int8_ms"]].to_numpy(), np.inf).argmin(axis=0)
    return float(gains[chosen, np.arange(len(weights))].mean() - gains[within].mean())


def describe_choice(chosen: str, table: pd.DataFrame, flattery: float) -> str:
    """Say in Markdown which network was chosen, what it gives up, and what the choice did to its score."""
    best, row = best_within(table), table.loc[chosen]
    sentences = [
        f"**{chosen}**: macro-F1 {row['macro_f1']:.3f} ({row['low']:.3f} to {row['high']:.3f}), in some "
        f"{row['int8_ms']:.2f} ms and {row['int8_bytes'] / 1000:,.0f} kB as INT8 (estimated)."
    ]
    if chosen != best:
        ratio = table.loc[best, "int8_ms"] / row["int8_ms"]
        sentences.append(
            f"{best} scores {-row['beyond']:+.3f} beyond it ({-row['at_best']:+.3f} to {-row['at_worst']:+.3f}), in "
            f"{ratio:.1f} times the time."
        )
    return " ".join([*sentences, f"The choice flatters the score by about {max(0, flattery):.3f}."])


def describe_hint(arch: str, table: pd.DataFrame, call: str) -> str:
    """Say which network at hand is better than `arch` beyond doubt, and how to `call` it; nothing if none is."""
    better = table[table["at_worst"] > 0]
    if better.empty:
        return ""
    name = better["macro_f1"].idxmax()
    row, ratio = better.loc[name], better.loc[name, "latency_ms"] / table.loc[arch, "latency_ms"]
    return (
        f"{name} would do better than {arch}: macro-F1 {row['beyond']:+.3f} ({row['at_worst']:+.3f} to "
        f"{row['at_best']:+.3f}) by a linear classifier on frozen features, in {ratio:.1f} times the time. "
        f"Try `{call} --arch {name}`"
    )


def command(folder: Path, run: Path) -> str:
    """Write the call of run.py that works on these photos and this run."""
    words = ["python", "run.py"]
    if folder != ROOT / "data" / "train":
        words += ["--data", relative(folder)]
    if run != CHECKPOINTS:
        words += ["--name", run.name]
    return shlex.join(words)


def entries(table: pd.DataFrame) -> list[dict]:
    """Shape the table for the report."""
    columns = ["name", "macro_f1", "ci95", "latency_ms", "bytes", "int8_ms", "int8_bytes", "beyond", "beyond_ci95"]
    shaped = table.rename_axis("name").reset_index()
    shaped["ci95"] = table[["low", "high"]].to_numpy().tolist()
    shaped["beyond_ci95"] = table[["at_worst", "at_best"]].to_numpy().tolist()
    return shaped[columns].to_dict("records")
