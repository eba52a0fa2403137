"""Near-duplicates: copies of one photo and photos of one object, which have to stay on one side of the split."""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import median_abs_deviation
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import pairwise_distances
from sklearn.preprocessing import normalize
from sklearn.utils import gen_batches

from utils.config import SEED, make_folder
from utils.datasets import Augmentation, ImageDataset, evaluation_transform, make_loader
from utils.features import extract_features, last_block
from utils.files import remembered_arrays
from utils.model import build_model
from utils.split import name_groups

NETWORK = "efficientnet_lite0@128"  # whatever ARCH is: the split must not depend on which network is trained
ALTERED = 128  # images that are altered, twice
FOUND = 0.95  # of altered copies, which are to be nearer than the threshold
DEVIATIONS = 4  # robust standard deviations below the median: nearer to another class than chance explains
ROUNDING = 1e-4  # features of exact copies differ by less
COLOR_LEVELS = 16  # of each channel in the color histogram
THUMBNAIL = 8  # pixels a side: enough for light, shape and pose, too few for noise
APART = 0.95  # of images, whose nearest one of another class is to be farther than the threshold by colors
COLOR_ROUNDING = 0.01  # of the median distance to another class: images nearer than this differ by rounding only
BATCH_SIZE = 250  # images whose distances to all others are in memory at a time
SAMPLE = 2000  # images that a threshold is fitted on
MAX_CHAIN = 5000  # images in a chain that average linkage takes apart; a longer chain is one group


class Descriptor(NamedTuple):
    """Vectors of images (N, D), how to measure their distance, and the scale that it is divided by."""

    vectors: np.ndarray
    metric: str
    scale: float = 1.0


Distance = list[Descriptor]  # the distance of two images is the sum over descriptors, scaled
NEAR = 1  # images nearer than this are near-duplicates: the scales are chosen so


class Groups(NamedTuple):
    """The group of each image, what it was told by, and the near-duplicates of two classes: positions (P, 2)."""

    names: pd.Series
    told_by: str
    across: np.ndarray


def group_images(folder: Path, index: pd.DataFrame, pictures: np.ndarray, pattern: str, cache: Path) -> Groups:
    """Group images by what `pattern` matches of their names, and those that it does not match by their looks.

    Near-duplicates of two classes, of which one has the wrong label, are one group in any case. What was found is
    remembered in the folder `cache`.
    """

    def compute() -> dict[str, np.ndarray]:
        features = describe_features(folder, index, cache)
        pairs = across = pairs_across(index, features)
        groups, told_by = name_groups(index, pattern), "file name"
        unnamed = np.flatnonzero(groups == index["path"])
        if len(unnamed):
            colors = describe_colors(pictures, index["class"].to_numpy())
            first = pd.Index(index["path"]).get_indexer(group_by_looks(index, [colors, features]))
            pairs = np.concatenate([across, np.stack([unnamed, first[unnamed]], axis=1)])
            told_by = "looks" if len(unnamed) == len(index) else "file names where they fit, and looks"
        names = join_groups(index, groups, pairs).to_numpy(str)
        return {"names": names, "told_by": np.array(told_by), "across": across}

    parts = [NETWORK, version("timm"), pattern, index[["path", "class", "sha256", "pixels"]].to_csv()]
    known = remembered_arrays(make_folder(cache) / "groups.npz", parts, compute)
    return Groups(pd.Series(known["names"], index.index, dtype=object), str(known["told_by"]), known["across"])


def describe_features(folder: Path, index: pd.DataFrame, cache: Path) -> Distance:
    """Describe images by a network's features: good at copies that were mirrored, cropped, turned or made brighter.

    How far copies lie apart is measured: 95 % of the copies of some images, altered as annotation services do, lie
    within the threshold. Where images of different classes come nearer, it is lower: four standard deviations below the
    median distance to the nearest image of another class, on a logarithmic scale, by the median absolute deviation,
    which a few wrong labels do not move (Leys et al. 2013).
    """
    network, preprocessing = build_model(NETWORK)
    prepare, classes = evaluation_transform(preprocessing), sorted(index["class"].unique())

    def features(dataset: ImageDataset) -> np.ndarray:
        rows = extract_features(network, make_loader(dataset), cache)
        return normalize(last_block(rows, network.sizes))

    rows = features(ImageDataset(folder, index, classes, prepare))
    some = index.sample(min(ALTERED, len(index)), random_state=SEED)
    altered = ImageDataset(folder, some, classes, prepare, Augmentation(alteration(prepare), classes))
    original = rows[index.index.get_indexer(some.index)]
    first, second = features(altered.in_epoch(0)), features(altered.in_epoch(1))
    apart = [1 - (one * other).sum(axis=1) for one, other in ((original, first), (original, second), (first, second))]
    described = Descriptor(rows, "cosine")
    nearest = np.log(nearest_of_another_class([described], index["class"].to_numpy()).clip(ROUNDING))
    by_chance = np.exp(np.median(nearest) - DEVIATIONS * median_abs_deviation(nearest, scale="normal"))
    return [described._replace(scale=max(min(np.quantile(apart, FOUND), by_chance), ROUNDING))]


def alteration(prepare: Callable) -> Callable:
    """Alter an image in one of five ways, drawn at random, before it is prepared."""
    from torchvision.transforms import v2  # takes seconds, and once features are known, nothing is altered

    ways = [
        v2.RandomHorizontalFlip(1),
        v2.RandomResizedCrop(256, scale=(0.7, 0.95), ratio=(0.9, 1.1)),
        v2.RandomRotation(15),
        v2.ColorJitter(brightness=0.3, contrast=0.3),
        v2.JPEG((30, 70)),
    ]
    return v2.Compose([v2.RandomChoice(ways), prepare])


def describe_colors(pictures: np.ndarray, labels: np.ndarray) -> Distance:
    """Describe pictures (N, S, S, 3) by colors and thumbnails: good at frames of one object, which features are not.

    Each distance is in units of its median from an image to the nearest one of another class. These two cannot show the
    same object, so the threshold of the sum is the data's own: 95 % of those nearest ones are farther.
    """
    used = np.flatnonzero(sum(color_histogram(picture) for picture in pictures))  # few of the 4,096 colors occur
    roots = np.sqrt([color_histogram(picture)[used] for picture in pictures], dtype=np.float32)
    side = pictures.shape[1] // THUMBNAIL
    blocks = pictures.reshape(len(pictures), THUMBNAIL, side, THUMBNAIL, side, 3)
    thumbnails = blocks.mean(axis=(2, 4), dtype=np.float32).reshape(len(pictures), -1)
    described = [Descriptor(roots, "cosine"), Descriptor(thumbnails, "euclidean")]  # the cosine of roots is Hellinger's
    scaled = [one._replace(scale=max(np.median(nearest_of_another_class([one], labels)), 1e-6)) for one in described]
    nearest = nearest_of_another_class(scaled, labels)
    distinct = nearest[nearest > COLOR_ROUNDING]  # a copy in another class is a wrong label, not a second object
    threshold = np.quantile(distinct, 1 - APART) if len(distinct) else COLOR_ROUNDING
    return [one._replace(scale=one.scale * threshold) for one in scaled]


def color_histogram(picture: np.ndarray, levels: int = COLOR_LEVELS) -> np.ndarray:
    """Count the pixels of a picture (S, S, 3) by color, each channel cut into `levels` steps: (levels³,)."""
    colors = picture.reshape(-1, 3) // (256 // levels) @ np.array([levels**2, levels, 1])
    return np.bincount(colors, minlength=levels**3)


def distances(measure: Distance, rows: np.ndarray, others: np.ndarray | slice = slice(None)) -> np.ndarray:
    """Distances (B, M) of some images to others."""
    return sum(pairwise_distances(one.vectors[rows], one.vectors[others], one.metric) / one.scale for one in measure)


def nearest_of_another_class(measure: Distance, labels: np.ndarray) -> np.ndarray:
    """Distances from a sample of the images to the nearest one with another label: (S,)."""
    sample, nearest = np.random.default_rng(SEED).permutation(len(labels))[:SAMPLE], []
    for batch in gen_batches(len(sample), BATCH_SIZE):
        some = sample[batch]
        nearest.append(np.where(labels[some, None] != labels, distances(measure, some), np.inf).min(axis=1))
    return np.concatenate(nearest)


def pairs_across(index: pd.DataFrame, measure: Distance) -> np.ndarray:
    """Find the near-duplicates, exact copies among them, that have different labels: positions (P, 2), likest first."""
    labels, found = index["class"].to_numpy(), []
    for batch in gen_batches(len(labels), BATCH_SIZE):
        rows = np.arange(batch.start, batch.stop)
        apart = np.where(labels[rows, None] != labels, distances(measure, rows), np.inf)
        near, others = np.nonzero((apart < NEAR) & (rows[:, None] < np.arange(len(labels))))
        found.append(pd.DataFrame({"distance": apart[near, others], "first": rows[near], "second": others}))
    return pd.concat(found).sort_values(["distance", "first", "second"])[["first", "second"]].to_numpy()


def group_by_looks(index: pd.DataFrame, measures: Sequence[Distance]) -> pd.Series:
    """Group images of one class that are near-duplicates by one measure at least, by the first image's name.

    Average linkage (Sokal and Michener 1958) of the smallest distance merges images up to NEAR, and does not chain
    look-alikes as single linkage does. It never merges two chains, so it is asked within each alone.
    """
    labels, groups = index["class"].to_numpy(), np.arange(len(index))
    for label in np.unique(labels):
        for chain in _chains(measures, np.flatnonzero(labels == label)):
            groups[chain] = chain[0]
            if 2 < len(chain) <= MAX_CHAIN:
                square = np.min([distances(measure, chain, chain) for measure in measures], axis=0)
                linked = AgglomerativeClustering(None, metric="precomputed", linkage="average", distance_threshold=NEAR)
                groups[chain] = chain[linked.fit_predict(square)]
    return index["path"].groupby(groups).transform("first")


def join_groups(index: pd.DataFrame, groups: pd.Series, pairs: Sequence | np.ndarray = ()) -> pd.Series:
    """Merge the groups of exact copies (same decoded pixels) and of `pairs` (P, 2).

    They are named by the class and name of their first image, so that the same photos are split alike whatever folders
    they lie in; by its path where another one is called the same.
    """
    numbers = groups.factorize()[0]
    first_copies = pd.Series(numbers).groupby(index["pixels"].to_numpy()).transform("first")
    first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    ones, others = np.concatenate([numbers, numbers[first]]), np.concatenate([first_copies, numbers[second]])
    names = index["class"] + "/" + index["path"].str.rpartition("/")[2]
    names = names.mask(names.duplicated(keep=False), index["path"])
    return names.groupby(_join(numbers, ones, others)).transform("first")


def _chains(measures: Sequence[Distance], members: np.ndarray) -> list[np.ndarray]:
    """Cut images into chains, in which each has a near-duplicate: positions of each chain's images."""
    numbers = np.arange(len(members))
    for batch in gen_batches(len(members), BATCH_SIZE):
        nearest = np.min([distances(measure, members[batch], members) for measure in measures], axis=0)
        rows, others = np.nonzero(nearest < NEAR)
        numbers = _join(numbers, numbers[batch][rows], numbers[others])
    return [members[numbers == number] for number in np.unique(numbers)]


def _join(numbers: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Renumber groups (N,) so that `first[i]` and `second[i]`, two of the numbers, become one."""
    links = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(numbers.max() + 1,) * 2)
    return connected_components(links, directed=False)[1][numbers]
