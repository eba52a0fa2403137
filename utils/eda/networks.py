"""The networks at hand on the user's own photos: how well their features tell the classes apart, and at what cost."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

from utils.config import SEED
from utils.cross_validation import out_of_fold
from utils.datasets import ImageDataset, evaluation_transform, make_loader
from utils.features import compact, extract_features, last_block, to_onnx
from utils.intervals import macro_f1_difference_interval, macro_f1_interval
from utils.metrics import macro_f1
from utils.model import build_model
from utils.pretrained import PACKAGED, is_installed, split_arch
from utils.progress import progress
from utils.split import separable_groups
from utils.stopwatch import time_calls

FAST = "efficientnet_lite0@128"  # what a hint suggests; the search for copies has computed its features already
INT8_TIME, INT8_BYTES = 0.7, 0.27  # of float's, as measured for efficientnet_lite0: for other networks an estimate
ROUNDS = 9  # of timing


class Photos(NamedTuple):
    """Photos to compare networks on: their folder, rows of the table, and the group of each, a number (N,)."""

    folder: Path
    index: pd.DataFrame
    groups: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """The class of each photo, a number (N,)."""
        return self.index["class"].factorize(sort=True)[0]

    def dataset(self, preprocessing: dict) -> ImageDataset:
        """Prepare the photos as a network wants them."""
        classes = sorted(self.index["class"].unique())
        return ImageDataset(self.folder, self.index, classes, evaluation_transform(preprocessing))


def choose_photos(folder: Path, index: pd.DataFrame, limit: int) -> Photos:
    """Draw at most `limit` photos of the table, none of the test part: it is to have no say in the choice."""
    known = index.assign(group=separable_groups(index))[index["split"] != "test"]
    known = known.sample(min(limit, len(known)), random_state=SEED).sort_index()
    return Photos(folder, known, known["group"].factorize()[0])


def at_hand(listed: Sequence[str] = ()) -> list[str]:
    """Name the networks whose weights are installed, EfficientNet-Lite0 in four sizes of photos, and those `listed`."""
    sizes = [f"efficientnet_lite0@{pixels}" for pixels in (96, 128, 160)]
    packaged = [name for name in (*sizes, *PACKAGED) if is_installed(name)]
    return list(dict.fromkeys(["conv_net", *packaged, *listed]))


def rivals(arch: str, listed: Sequence[str] = ()) -> list[str]:
    """Name the networks that `arch` is compared with in every run: not itself at another size, but those `listed`."""
    others = [name for name in at_hand() if name in ("conv_net", FAST) and split_arch(name)[0] != split_arch(arch)[0]]
    return [name for name in dict.fromkeys([*others, *listed]) if name != arch]


def score_networks(names: Sequence[str], photos: Photos, cache: Path) -> dict[str, dict]:
    """Let a linear classifier answer each photo from each network's frozen features, on the same folds by group.

    Returns by name: `answers` (N,), out of fold; `latency_ms` of one photo in the exported float graph, in ONNX Runtime
    on this CPU; and `bytes` of that graph. The last layer, which is small, is not in it.
    """
    linear, found, graphs = LogisticRegression(class_weight="balanced", max_iter=1000), {}, {}
    for name in progress(names, "networks"):
        model, preprocessing = build_model(name)
        rows = extract_features(model, make_loader(photos.dataset(preprocessing)), cache)
        features = compact(last_block(rows, model.sizes))
        probabilities = out_of_fold(linear, features, photos.labels, photos.groups, repeats=1)
        shape = 1, 3, preprocessing["image_size"], preprocessing["image_size"]
        graphs[name] = to_onnx(model, shape), shape
        found[name] = {"answers": probabilities[0].argmax(axis=1).tolist(), "bytes": len(graphs[name][0])}
    for name, latency in time_graphs(graphs).items():
        found[name]["latency_ms"] = latency
    return found


def time_graphs(graphs: dict[str, tuple[bytes, tuple]]) -> dict[str, float]:
    """Time ONNX files on one image of their shape, side by side; → median in ms."""
    from utils.session import open_session  # EDA needs no ONNX Runtime otherwise

    calls = {}
    for name, (file, shape) in graphs.items():
        calls[name] = partial(open_session(file).run, None, {"input": np.zeros(shape, dtype=np.float32)})
    return {name: float(np.median(times)) for name, times in time_calls(calls, range(ROUNDS)).items()}


def tabulate(found: dict[str, dict], photos: Photos) -> pd.DataFrame:
    """Make a table of what `score_networks` found, a row per network.

    Columns: macro_f1 with its 95 % interval by group, low and high; latency_ms and bytes of the float graph; int8_ms
    and int8_bytes, estimated as fixed shares of them.
    """
    labels, rows = photos.labels, {}
    for name, row in found.items():
        answers = np.array(row["answers"])
        interval = macro_f1_interval(labels, answers, labels.max() + 1, photos.groups)
        rows[name] = macro_f1(labels, answers, labels.max() + 1), *interval, row["latency_ms"], row["bytes"]
    columns = ["macro_f1", "low", "high", "latency_ms", "bytes"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return table.assign(int8_ms=table["latency_ms"] * INT8_TIME, int8_bytes=table["bytes"] * INT8_BYTES)


def pair(found: dict[str, dict], photos: Photos, reference: str) -> pd.DataFrame:
    """Compare each network with a `reference` on the same photos; → macro-F1 beyond it, at worst, at best (95 %)."""
    labels, first, rows = photos.labels, np.array(found[reference]["answers"]), {reference: (0.0, 0.0, 0.0)}
    classes = labels.max() + 1
    for name, row in found.items():
        if name == reference:
            continue
        answers = np.array(row["answers"])
        beyond = macro_f1(labels, answers, classes) - macro_f1(labels, first, classes)
        rows[name] = beyond, *macro_f1_difference_interval(labels, first, answers, classes, photos.groups)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["beyond", "at_worst", "at_best"])
