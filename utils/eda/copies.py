"""Likeness of images to a pretrained network: good at copies that were mirrored, cropped, turned or made brighter."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pandas as pd
from scipy.stats import median_abs_deviation
from sklearn.preprocessing import normalize
from sklearn.utils import gen_batches
from torchvision.transforms import v2

from utils.config import SEED
from utils.datasets import Augmentation, ImageDataset, evaluation_transform, make_loader
from utils.eda.looks import BATCH_SIZE, SAMPLE
from utils.features import extract_features, last_block
from utils.model import build_model

NETWORK = "efficientnet_lite0@128"  # whatever ARCH is: the split must not depend on which network is trained
CROPPED = 256  # pixels a side of a copy that was cropped
ALTERED = 128  # images that are altered, twice
QUANTILE = 0.95  # of altered copies that are to be found
DEVIATIONS = 4  # robust standard deviations below the median: nearer to another class than chance explains
ROUNDING = 1e-4  # features of exact copies differ by less


class Copies(NamedTuple):
    """What a network sees: features of length 1 (N, D), and the cosine distance below which two are copies."""

    features: np.ndarray
    threshold: float

    def select(self, rows: np.ndarray) -> Self:
        """Return some of the images."""
        return self._replace(features=self.features[rows])

    def distances(self, rows: np.ndarray | slice) -> np.ndarray:
        """Distances (B, N) of some images to all, in units of the threshold."""
        return (1 - self.features[rows] @ self.features.T).clip(0) / self.threshold


def describe_copies(folder: Path, index: pd.DataFrame, cache: Path) -> Copies:
    """Describe the images of the table by a network's features, so that images at a distance below 1 are likely copies.

    How far copies lie apart is measured: some images are altered, as annotation services do, and 95 % of these copies
    lie within the threshold. Where images of different classes come nearer than that, it is lower: four standard
    deviations below the median distance to the nearest image of another class, on a logarithmic scale, both taken
    from the median and the median absolute deviation, which a few wrong labels do not move (Leys et al. 2013).
    """
    network, preprocessing = build_model(NETWORK)
    prepare, classes = evaluation_transform(preprocessing), sorted(index["class"].unique())

    def features(dataset: ImageDataset) -> np.ndarray:
        return normalize(last_block(extract_features(network, make_loader(dataset), cache), network.sizes))

    rows = features(ImageDataset(folder, index, classes, prepare))
    some = index.sort_values("path").sample(min(ALTERED, len(index)), random_state=SEED)
    altered = ImageDataset(folder, some, classes, prepare, Augmentation(alteration(prepare), classes))
    original = rows[index.index.get_indexer(some.index)]
    first, second = features(altered.in_epoch(0)), features(altered.in_epoch(1))
    apart = [1 - (one * other).sum(axis=1) for one, other in ((original, first), (original, second), (first, second))]
    by_chance = _nearest_by_chance(rows, index["class"].to_numpy())
    return Copies(rows, float(max(min(np.quantile(apart, QUANTILE), by_chance), ROUNDING)))


def alteration(prepare: Callable) -> v2.Compose:
    """Alter an image in one of five ways, drawn at random, before it is prepared."""
    ways = [
        v2.RandomHorizontalFlip(1),
        v2.RandomResizedCrop(CROPPED, scale=(0.7, 0.95), ratio=(0.9, 1.1)),
        v2.RandomRotation(15),
        v2.ColorJitter(brightness=0.3, contrast=0.3),
        v2.JPEG((30, 70)),
    ]
    return v2.Compose([v2.RandomChoice(ways), prepare])


def _nearest_by_chance(rows: np.ndarray, labels: np.ndarray) -> float:
    """Say how near another class comes by chance: nearer than this, images of two classes are copies of one."""
    sample, nearest = np.random.default_rng(SEED).permutation(len(labels))[:SAMPLE], []
    for batch in gen_batches(len(sample), BATCH_SIZE):
        some = sample[batch]
        distances = np.where(labels[some, None] != labels, 1 - rows[some] @ rows.T, np.inf)
        nearest.append(distances.min(axis=1))
    logarithms = np.log(np.concatenate(nearest).clip(ROUNDING))
    return np.exp(np.median(logarithms) - DEVIATIONS * median_abs_deviation(logarithms, scale="normal"))
