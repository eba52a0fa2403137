"""Which network suits the photos, and does the choice keep its word: python -m bench.networks [--data DIR --name RUN].

Needs the split.csv that EDA.ipynb makes. Compares the networks at hand as ARCH = "auto" does, without a budget and with
two, and then, for each, fits the head of train.ipynb out of fold on all images, the test part among them.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from bench.options import parse_options
from utils.cross_validation import out_of_fold
from utils.eda import networks
from utils.features import extract_features
from utils.metrics import macro_f1
from utils.split import load_index, separable_groups
from utils.train.head import Head

BUDGETS_MS = [None, 2.0, 0.5]


def head_out_of_fold(name: str, folder: Path, index: pd.DataFrame, cache: Path) -> float:
    """Fit train.ipynb's head to a network's frozen features, out of fold; → macro-F1 on all images."""
    network, loader = networks.load(name, folder, index)
    features, labels = extract_features(network, loader, cache), np.array(loader.dataset.labels)
    groups = separable_groups(index).factorize()[0]
    (probabilities,) = out_of_fold(Head(network.sizes), features, labels, groups, repeats=1)
    return macro_f1(labels, probabilities.argmax(axis=1), probabilities.shape[1])


def main() -> None:
    """Print the table, each budget's choice, the seconds, and the head's score beside what the choice promised."""
    _, run, data = parse_options(__doc__)
    index = load_index(run / "split.csv", data)
    with tempfile.TemporaryDirectory() as folder:
        for budget in BUDGETS_MS:
            started = time.perf_counter()
            constraints = networks.Constraints("", budget)
            compared = networks.choose_network("auto", data, index, Path(folder), constraints)
            print(f"budget {budget} ms, {time.perf_counter() - started:.1f} s: {compared.reason}", flush=True)
            if budget is None:
                table = compared.table
        table["head"] = [head_out_of_fold(name, data, index, Path(folder) / "features") for name in table.index]
    print(table.round(3).to_string())


if __name__ == "__main__":
    main()
