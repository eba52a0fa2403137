"""What a split by image hides: the training of train.ipynb over random splits of the data, by fruit and by image.

python -m bench.split [SPLITS]    (100 take some five minutes on two cores)
"""

import sys

import numpy as np
import pandas as pd
from tqdm import trange

from bench.notebooks import define_training, run_cells
from utils.config import ROOT, run_folder
from utils.images import scan_folder
from utils.metrics import macro_f1
from utils.split import PARTS, minority_classes, name_groups, split_index

DATA = ROOT / "data" / "train"


def prepare(index: pd.DataFrame) -> dict:
    """Take transforms, features and training from train.ipynb, for the table of images given."""
    names = run_cells("train", ["imports", "parameters"], {})
    names.update(ARCH="conv_net", AUGMENT="minority", data=DATA, run=run_folder("bench"), index=index)
    names.update(classes=sorted(index["class"].unique()), minority=minority_classes(index["class"]))
    return define_training(names)


def score(names: dict, index: pd.DataFrame, seed: int) -> float:
    """Split, train and return test macro-F1."""
    split = split_index(index, seed)
    parts = {part: index[split == part] for part in PARTS}
    model = names["fit"](parts["train"], parts["valid"])
    logits, labels = names["table"].predict(model, parts["test"])
    return macro_f1(labels, logits.argmax(axis=1), logits.shape[1])


def main() -> None:
    """Print mean and standard deviation for both splits."""
    splits = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    index, _ = scan_folder(DATA)
    groups = {"by fruit": name_groups(index, r"(apple|cherry|tomato)_\d+"), "by image": index["path"]}
    for name, group in groups.items():
        table = index.assign(group=group)
        names = prepare(table)
        scores = [score(names, table, seed) for seed in trange(splits, desc=name, leave=False)]
        print(f"{name}: test macro-F1 {np.mean(scores):.3f}, standard deviation {np.std(scores):.3f}, {splits} splits")


if __name__ == "__main__":
    main()
