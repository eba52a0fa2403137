"""What a split by image hides: the recipe of train.ipynb over random splits of the data, by fruit and by image.

python -m bench.split [SPLITS]    (100 take some five minutes on two cores)
"""

import sys
from functools import partial

import numpy as np
import pandas as pd
from torchvision.transforms import InterpolationMode, v2
from tqdm import trange

from utils.config import ROOT, seed_everything
from utils.datasets import ImageDataset, evaluation_transform
from utils.images import scan_folder
from utils.metrics import macro_f1
from utils.model import build_model
from utils.split import minority_classes, name_groups, split_index
from utils.train.head import view_features
from utils.train.training import default_epochs, head_then_fine_tune

DATA = ROOT / "data" / "train"
VIEWS = 3


def make_recipe(index: pd.DataFrame) -> partial:
    """Prepare what does not depend on the split: the transforms, the network, its features."""
    classes, minority = sorted(index["class"].unique()), minority_classes(index["class"])
    model, preprocessing = build_model("conv_net", len(classes))
    basic = evaluation_transform(preprocessing)
    turn = v2.RandomRotation(15, interpolation=InterpolationMode.BILINEAR, fill=255)
    augmented = v2.Compose([basic.transforms[0], v2.RandomHorizontalFlip(), turn, basic])

    def image_set(part: pd.DataFrame, names: tuple = ()) -> ImageDataset:
        return ImageDataset(DATA, part, classes, basic, names, augmented)

    features, rows = view_features(model, image_set, index, minority, VIEWS)
    ingredients = {"model": model, "features": features, "rows": rows, "image_set": image_set, "augmented": minority}
    options = {"epochs": default_epochs("conv_net"), "batch_size": 16, "learning_rate": 1e-3}
    return partial(head_then_fine_tune, **ingredients, **options)


def score(recipe: partial, index: pd.DataFrame, seed: int) -> float:
    """Split, train and return test macro-F1."""
    seed_everything(seed)
    split, codes = split_index(index, seed), index["group"].factorize()[0]
    train, valid, test = (index[split == part] for part in ("train", "valid", "test"))
    logits, _ = recipe(train, valid, test, codes=codes)
    labels = np.unique(index["class"], return_inverse=True)[1][test.index]
    return macro_f1(labels, logits.argmax(1), logits.shape[1])


def main() -> None:
    """Print mean and standard deviation for both splits."""
    splits = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    index, _ = scan_folder(DATA)
    recipe = make_recipe(index)
    groups = {"by fruit": name_groups(index["path"], r"(apple|cherry|tomato)_\d+"), "by image": index["path"]}
    for name, group in groups.items():
        scores = [score(recipe, index.assign(group=group), seed) for seed in trange(splits, desc=name, leave=False)]
        print(f"{name}: test macro-F1 {np.mean(scores):.3f}, standard deviation {np.std(scores):.3f}, {splits} splits")


if __name__ == "__main__":
    main()
