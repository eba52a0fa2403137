"""Is the out-of-fold score flattering or gloomy? python -m bench.folds [--data DIR --name RUN --arch A].

Needs the split.csv that EDA.ipynb makes. In each of 20 draws, half of the groups play someone's data, of the first
class three: a head is trained on its training part, as the shipped one is, and scored on the other half. That score is
the truth, which out-of-fold scores on someone's data should equal on average.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from bench.options import parse_options
from utils.config import SEED
from utils.cross_validation import fold_parts, plan_folds
from utils.datasets import ImageDataset, evaluation_transform, make_loader
from utils.features import extract_features
from utils.metrics import macro_f1
from utils.model import build_model
from utils.split import load_index, separable_groups, split_index
from utils.train.head import Head

DRAWS = 20
WAYS = {"5 of 7 folds": (7, True), "6 of 7 folds": (7, False), "one of 3 folds": (3, True)}  # to train on


class Images(NamedTuple):
    """The table, and its images' features (N, D) of blocks of these `sizes`, and labels (N,)."""

    index: pd.DataFrame
    features: np.ndarray
    labels: np.ndarray
    sizes: Sequence[int]

    @property
    def groups(self) -> np.ndarray:
        """The groups (N,), as numbers."""
        return self.index["group"].factorize()[0]

    def predict(self, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        """Fit a head to some images, by mask or position, and predict others; → labels."""
        head = Head(self.sizes, self.labels.max() + 1)
        return head.fit(self.features[train], self.labels[train], self.groups[train]).predict(self.features[test])

    def score(self, answers: np.ndarray) -> float:
        """Score an answer to every image."""
        return macro_f1(self.labels, answers, self.labels.max() + 1)

    def take(self, rows: np.ndarray) -> "Images":
        """Select images."""
        return Images(self.index[rows].reset_index(drop=True), self.features[rows], self.labels[rows], self.sizes)


def halve(index: pd.DataFrame, generator: np.random.Generator) -> np.ndarray:
    """Deal out the groups of every class; → whose half each image is in (N,): 0 or 1, or 2 for nobody's.

    Of the first class a half has three groups, so that both halves are as imbalanced.
    """
    half = {}
    for number, (_, groups) in enumerate(index.groupby("class")["group"]):
        names = generator.permutation(groups.unique())
        each = len(names) // 2 if number else 3
        half |= dict.fromkeys(names, 2) | dict.fromkeys(names[:each], 0) | dict.fromkeys(names[each : 2 * each], 1)
    return index["group"].map(half).to_numpy()


def out_of_fold(images: Images, folds: int, validate: bool, seed: int) -> float:
    """Score heads that saw neither what they predict nor, with `validate`, the fold that would choose the epoch."""
    fold_of = plan_folds(images.index, folds, 1, seed)[0]
    answers = np.zeros(len(fold_of), dtype=int)
    for test, valid in fold_parts(images.index["class"], fold_of):
        answers[test] = images.predict(~test & ~(valid & validate), test)
    return images.score(answers)


def read_images(documentation: str) -> tuple[str, Images]:
    """Read the images of the run that the command line names; → a caption, and them."""
    arch, run, data = parse_options(documentation)
    index = load_index(run / "split.csv", data)
    index["group"] = separable_groups(index)
    model, preprocessing = build_model(arch)
    dataset = ImageDataset(data, index, sorted(index["class"].unique()), evaluation_transform(preprocessing))
    features = extract_features(model, make_loader(dataset), run / "features")
    images = Images(index, features, np.array(dataset.labels), model.sizes)
    return f"{len(index)} images, {images.labels.max() + 1} classes, {arch}", images


def main() -> None:
    """Print, for each way to cut folds, how far its score is from the truth."""
    (caption, images), generator, rows = read_images(__doc__), np.random.default_rng(SEED), []
    for draw in range(DRAWS):
        half = halve(images.index, generator)
        someones, train = images.take(half == 0), np.zeros(len(half), dtype=bool)
        train[half == 0] = (split_index(someones.index, SEED + draw) == "train").to_numpy()
        truth = images.take(half == 1).score(images.predict(train, half == 1))
        scores = {name: out_of_fold(someones, *way, SEED + draw) - truth for name, way in WAYS.items()}
        rows.append({"truth": truth, "share": train.sum() / len(someones.labels)} | scores)
    table = pd.DataFrame(rows)
    print(f"{caption}: macro-F1 {table['truth'].mean():.3f} on what was kept back, by heads")
    print(f"trained on {table['share'].mean():.0%} of someone's images. Out of fold on these, beyond that:")
    for name in WAYS:
        print(f"{name:16}{table[name].mean():+8.4f} ± {2 * table[name].std() / np.sqrt(DRAWS):.4f}")


if __name__ == "__main__":
    main()
