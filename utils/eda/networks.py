"""The networks that are available, compared on the user's own photos, and the one to go on with."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from torch import nn
from torch.utils.data import DataLoader

from utils import plots
from utils.config import CHECKPOINTS, EMBEDDED, SEED, require
from utils.cross_validation import LINEAR, out_of_fold
from utils.datasets import ImageDataset, evaluation_transform, make_loader
from utils.eda.probes import frozen_features
from utils.features import to_onnx
from utils.files import remembered
from utils.intervals import compare_predictions, macro_f1_interval
from utils.metrics import macro_f1
from utils.model import build_model
from utils.pretrained import PACKAGED, is_installed, split_arch
from utils.report import render
from utils.split import separable_groups
from utils.stopwatch import time_calls

FAST = "efficientnet_lite0@128"  # a baseline in every run; the search for near-duplicates has computed its features
INT8_TIME = 0.7  # of float's, as measured for efficientnet_lite0: for other networks an estimate
INT8_BYTES = 0.27  # likewise
TIE = 0.005  # macro-F1 below the best one's: so little is no reason for a slower network
CHOICE_PHOTOS = 1000  # to compare networks on, at most, where the choice depends on it
BASELINE_PHOTOS = 300  # in every other run
ROUNDS = 9  # of timing


class Constraints(NamedTuple):
    """Further networks to compare, names with commas between (None: compare nothing), and what INT8 may cost."""

    networks: str | None = ""
    budget_ms: float | None = None  # for one photo
    budget_kb: float | None = None


class Comparison(NamedTuple):
    """The network to go on with, the table behind it, why it is this one, and a hint if another would do better."""

    arch: str
    table: pd.DataFrame
    reason: str
    hint: str = ""


def choose_network(
    arch: str | None, folder: Path, index: pd.DataFrame, run: Path, constraints: Constraints
) -> Comparison:
    """Choose a network if `arch` is "auto", and else ask whether a baseline would do better beyond doubt.

    Without a name, it is conv_net for the embedded images, and chosen for any others. All networks are judged by a
    linear classifier on frozen features, out of fold, without the test part; what was found is remembered in the folder
    `run`. The table has the columns of `tabulate`. Raises InputError if no network keeps the constraints.
    """
    reason = f"{arch}, as given"
    if arch is None and folder == EMBEDDED:
        arch, reason = "conv_net", "conv_net, the one of the embedded images"
    choosing = arch in (None, "auto")
    listed = (constraints.networks or "").replace(",", " ").split()
    if choosing:
        names = available(listed)
    elif constraints.networks is None:
        names = [arch]
    else:
        names = baselines(arch, listed)
    photos = draw_photos(index, CHOICE_PHOTOS if choosing else BASELINE_PHOTOS)
    parts = names, photos[["path", "sha256", "group"]].to_csv(), CHECKPOINTS / "conv_net.pth"
    found = remembered(run / "networks.json", parts, partial(score_networks, names, folder, photos, run / "features"))
    costs = estimate_costs(found)
    if not choosing:
        table = tabulate(found, photos, costs, arch)
        return Comparison(arch, table, reason, describe_hint(arch, table))
    table = tabulate(found, photos, costs[affordable(costs, constraints)])
    arch, best = choose(table), table["macro_f1"].idxmax()
    return Comparison(arch, table, render("choice.txt", arch=arch, best=best, table=table.to_dict("index")))


def load(arch: str, folder: Path, index: pd.DataFrame) -> tuple[nn.Module, DataLoader]:
    """Build a pretrained network, and a loader of the table's photos as it wants them prepared."""
    network, preprocessing = build_model(arch)
    dataset = ImageDataset(folder, index, sorted(set(index["class"])), evaluation_transform(preprocessing))
    return network, make_loader(dataset)


def draw_photos(index: pd.DataFrame, limit: int) -> pd.DataFrame:
    """Draw at most `limit` photos of the table, none of the test part, which is to have no say in the choice."""
    known = index.assign(group=separable_groups(index))[index["split"].isin(["train", "valid"])]
    known = known.sample(min(limit, len(known)), random_state=SEED).sort_index()
    return known.assign(group=known["group"].factorize()[0])


def available(listed: Sequence[str]) -> list[str]:
    """Name the networks whose weights are installed, EfficientNet-Lite0 in four sizes of photos, and those `listed`."""
    sizes = [f"efficientnet_lite0@{pixels}" for pixels in (96, 128, 160)]
    packaged = [name for name in (*sizes, *PACKAGED) if is_installed(name)]
    return list(dict.fromkeys(["conv_net", *packaged, *listed]))


def baselines(arch: str, listed: Sequence[str]) -> list[str]:
    """Name `arch` and what it is compared with in every run: not itself at another size, but the networks `listed`."""
    usual = ["conv_net", FAST] if is_installed(FAST) else ["conv_net"]
    others = [name for name in usual if split_arch(name)[0] != split_arch(arch)[0]]
    return list(dict.fromkeys([arch, *others, *listed]))


def score_networks(names: Sequence[str], folder: Path, photos: pd.DataFrame, cache: Path) -> dict[str, dict]:
    """Let a linear classifier predict each photo from each network's frozen features, on the same folds by group.

    Returns by name: `predictions` (N,), out of fold; `latency_ms` of one photo in the exported float graph without its
    last layer, in ONNX Runtime on this CPU; and `bytes` of that graph.
    """
    from utils.session import open_session  # EDA needs no ONNX Runtime otherwise

    labels, groups = photos["class"].factorize(sort=True)[0], photos["group"].to_numpy()
    found, calls = {}, {}
    for name in names:
        model, loader = load(name, folder, photos)
        features = frozen_features(model, loader, cache)
        predictions = out_of_fold(LINEAR, features, labels, groups, repeats=1)[0].argmax(axis=1)
        image = np.zeros((1, *loader.dataset[0][0].shape), dtype=np.float32)
        graph = to_onnx(model, image.shape)
        calls[name] = partial(open_session(graph).run, None, {"input": image})
        found[name] = {"predictions": predictions.tolist(), "bytes": len(graph)}
    for name, times in time_calls(calls, range(ROUNDS)).items():
        found[name]["latency_ms"] = float(np.median(times))
    return found


def estimate_costs(found: dict[str, dict]) -> pd.DataFrame:
    """List latency_ms and bytes of each network's float graph, and int8_ms and int8_kb, estimated as shares of them."""
    costs = pd.DataFrame(found).T[["latency_ms", "bytes"]].astype({"latency_ms": float, "bytes": int})
    int8_kb = (costs["bytes"] * INT8_BYTES / 1000).round().astype(int)
    return costs.assign(int8_ms=costs["latency_ms"] * INT8_TIME, int8_kb=int8_kb)


def tabulate(found: dict[str, dict], photos: pd.DataFrame, costs: pd.DataFrame, reference: str = "") -> pd.DataFrame:
    """Put the scores of the networks in `costs` beside these: macro_f1, low and high, its 95 % interval by group.

    `difference` is the macro-F1 minus that of a `reference`, or of the best, paired; its interval is difference_low and
    difference_high.
    """
    labels, groups = photos["class"].factorize(sort=True)[0], photos["group"].to_numpy()
    predictions = {name: np.array(found[name]["predictions"]) for name in costs.index}
    rows = {}
    for name, row in predictions.items():
        interval = macro_f1_interval(labels, row, labels.max() + 1, groups)
        rows[name] = macro_f1(labels, row, labels.max() + 1), *interval
    scores = pd.DataFrame.from_dict(rows, orient="index", columns=["macro_f1", "low", "high"])
    compared = compare_predictions(predictions, reference or scores["macro_f1"].idxmax(), labels, groups)
    compared = compared.drop(columns="macro_f1").rename(columns={"low": "difference_low", "high": "difference_high"})
    return scores.join([costs, compared])


def affordable(table: pd.DataFrame, constraints: Constraints) -> pd.Series:
    """Tell which networks keep the constraints, by what INT8 is estimated to cost. Raises InputError if none does."""
    _, most_ms, most_kb = constraints
    kept = (table["int8_ms"] <= (most_ms or np.inf)) & (table["int8_kb"] <= (most_kb or np.inf))
    require(
        kept.any(),
        f"no network fits BUDGET_MS {most_ms} and BUDGET_KB {most_kb}: as INT8, the fastest takes about "
        f"{table['int8_ms'].min():.2f} ms and the smallest {table['int8_kb'].min():.0f} kB",
    )
    return kept


def choose(table: pd.DataFrame) -> str:
    """Name the fastest network that scores at most 0.005 less than the best one and is not shown to be worse.

    With few photos nothing is shown to be worse, and with many a loss is that does not matter; so both count.
    """
    good = (table["difference"] >= -TIE) & (table["difference_high"] >= 0)
    return str(table.loc[good, "int8_ms"].idxmin())


def describe_hint(arch: str, table: pd.DataFrame) -> str:
    """Say which network is better than `arch` beyond doubt, and by how much; nothing if none is."""
    better = table[table["difference_low"] > 0]
    if better.empty:
        return ""
    name = better["macro_f1"].idxmax()
    return render("hint.txt", arch=arch, name=name, better=better.loc[name], table=table.to_dict("index"))


def entries(table: pd.DataFrame) -> list[dict]:
    """Shape the table for the report."""
    shaped = table.rename_axis("name").reset_index()
    shaped["ci95"] = table[["low", "high"]].to_numpy().tolist()
    shaped["difference_ci95"] = table[["difference_low", "difference_high"]].to_numpy().tolist()
    return shaped.drop(columns=["low", "high", "difference_low", "difference_high"]).to_dict("records")


def draw(compared: pd.DataFrame, chosen: str, ax: Axes | None = None) -> Axes:
    """Draw each network's score with its interval, the fastest first; beside its name, INT8's time, as estimated."""
    rows = compared.sort_values("int8_ms").rename(columns={"macro_f1": "score"})
    colors = [plots.COLORS[name == chosen] for name in rows.index]
    names = [f"{name}, {time:.1f} ms" for name, time in rows["int8_ms"].items()]
    ax = plots.intervals(rows.set_axis(names), colors, ax=ax)
    ax.set_xlabel("macro-F1 out of fold, 95 % interval; ms for one photo in INT8, estimated")
    ax.set_title("Networks on the same folds; orange: the one to go on with")
    return ax
