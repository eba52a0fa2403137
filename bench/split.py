"""What a split by image hides: the recipe of train.ipynb over random splits of the data, by fruit and by image.

python -m bench.split [SPLITS]    (100 take four minutes on two cores)
"""

import sys

import numpy as np
import pandas as pd
from torchvision.transforms import InterpolationMode, v2
from tqdm import trange

from utils.config import ROOT, seed_everything
from utils.datasets import ImageDataset, evaluation_transform, make_loader, minority_classes, name_groups, split_index
from utils.images import scan_folder
from utils.metrics import macro_f1
from utils.model import build_model, predict
from utils.training import fine_tune

DATA = ROOT / "data" / "train"


def score(index: pd.DataFrame, seed: int) -> float:
    """Split, train and return test macro-F1."""
    seed_everything(seed)
    classes = sorted(index["class"].unique())
    model, preprocessing = build_model("conv_net", len(classes))
    basic = evaluation_transform(preprocessing)
    turn = v2.RandomRotation(15, interpolation=InterpolationMode.BILINEAR, fill=255)
    augmented = v2.Compose([v2.RandomHorizontalFlip(), turn, basic])
    split, minority = split_index(index, seed), minority_classes(index["class"])
    train_set = ImageDataset(DATA, index[split == "train"], classes, basic, minority, augmented, seed=seed)
    valid, test = (ImageDataset(DATA, index[split == part], classes, basic) for part in ("valid", "test"))
    model = fine_tune(model, train_set, make_loader(valid, 64), epochs=3, batch_size=16, learning_rate=1e-3)
    logits, labels = predict(model, make_loader(test, 64))
    return macro_f1(labels, logits.argmax(1), len(classes))


def main() -> None:
    """Print mean and standard deviation for both splits."""
    splits = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    index, _ = scan_folder(DATA)
    groups = {"by fruit": name_groups(index["path"], r"(apple|cherry|tomato)_\d+"), "by image": index["path"]}
    for name, group in groups.items():
        scores = [score(index.assign(group=group), seed) for seed in trange(splits, desc=name, leave=False)]
        print(f"{name}: test macro-F1 {np.mean(scores):.3f}, standard deviation {np.std(scores):.3f}, {splits} splits")


if __name__ == "__main__":
    main()
