"""Which images belong together: copies, near-copies, frames of one object."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform
from sklearn.metrics.cluster import pair_confusion_matrix
from sklearn.utils import gen_batches

from utils.config import SEED

COLOR_LEVELS = 16  # of each channel in the color histogram
THUMBNAIL = 8  # pixels a side: enough for light, shape and pose, too few for noise
BATCH_SIZE = 250  # images whose distances to all others are in memory at a time
SAMPLE = 4000  # images that the threshold is fitted on
MAX_CHAIN = 5000  # images in a chain that average linkage takes apart; a longer chain is one group
QUANTILE = 0.05
ROUNDING = 0.01  # of the median distance to another class: images nearer than this differ by rounding only

Descriptors = tuple[np.ndarray, np.ndarray]  # colors (N, K) and thumbnails (N, T)


def duplicate_groups(index: pd.DataFrame, pictures: np.ndarray) -> pd.Series:
    """Group images of one class that resemble each other more than images of two classes ever do.

    Two images differ by their color histograms (Hellinger) plus their thumbnails (root mean square), each in units of
    the median distance from an image to the nearest one of another class. Images of two classes cannot show the same
    object, so the threshold is the data's own: 95 % of those nearest ones are farther away. Within a class, average
    linkage (Sokal and Michener 1958) merges up to the threshold; it does not chain look-alikes as single linkage does.
    `pictures` (N, S, S, 3) are those of the index. Groups are named by their first image. Exact copies are one group,
    across classes too.
    """
    descriptors, labels = _describe(pictures), index["class"].to_numpy()
    scales, threshold = _fit_threshold(descriptors, labels)
    groups = np.zeros(len(index), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        groups[members] = groups.max() + _cluster(_select(descriptors, members), scales, threshold)
    return join_copies(index, pd.Series(groups, index=index.index))


def join_copies(index: pd.DataFrame, groups: pd.Series) -> pd.Series:
    """Merge the groups that hold exact copies (same decoded pixels) of each other; named by their first image."""
    numbers = pd.Series(groups.factorize()[0], index=index.index)
    first_copies = numbers.groupby(index["pixels"]).transform("first")
    joined = _join(numbers.to_numpy(), numbers.to_numpy(), first_copies.to_numpy())
    return index["path"].groupby(joined).transform("first")


def pair_scores(groups: pd.Series, truth: pd.Series) -> tuple[float, float]:
    """Precision and recall of the pairs of images that `groups` puts together, against the groups in `truth`."""
    pairs = pair_confusion_matrix(truth, groups)
    right, found, real = pairs[1, 1], pairs[:, 1].sum(), pairs[1].sum()
    return float(right / found) if found else 1.0, float(right / real) if real else 1.0


def _describe(pictures: np.ndarray) -> Descriptors:
    """Describe pictures (N, S, S, 3) by the square roots of their color shares (N, K) and thumbnails (N, T)."""
    used = np.flatnonzero(sum(color_histogram(picture) for picture in pictures))  # few of the 4,096 colors occur
    colors = np.empty((len(pictures), len(used)), dtype=np.float32)
    for position, picture in enumerate(pictures):
        colors[position] = np.sqrt(color_histogram(picture)[used] / (picture.size / 3))
    side = pictures.shape[1] // THUMBNAIL
    blocks = pictures.reshape(len(pictures), THUMBNAIL, side, THUMBNAIL, side, 3)
    thumbnails = blocks.mean(axis=(2, 4), dtype=np.float32).reshape(len(pictures), -1)
    return colors, thumbnails - thumbnails.mean(axis=0)


def color_histogram(picture: np.ndarray, levels: int = COLOR_LEVELS) -> np.ndarray:
    """Count the pixels of a picture (S, S, 3) by color, each channel cut into `levels` steps: (levels³,)."""
    colors = picture.reshape(-1, 3) // (256 // levels) @ np.array([levels**2, levels, 1])
    return np.bincount(colors, minlength=levels**3)


def _select(descriptors: Descriptors, rows: np.ndarray) -> Descriptors:
    colors, thumbnails = descriptors
    return colors[rows], thumbnails[rows]


def _distances(descriptors: Descriptors, rows: np.ndarray | slice) -> np.ndarray:
    """Distances (2, B, N) of some images to all: by colors, by thumbnails."""
    colors, thumbnails = descriptors
    lengths = (thumbnails**2).sum(axis=1)
    squares = lengths[rows, None] + lengths - 2 * thumbnails[rows] @ thumbnails.T
    by_thumbnail = np.sqrt(squares.clip(0) / thumbnails.shape[1])
    return np.stack([1 - colors[rows] @ colors.T, by_thumbnail]).clip(1e-6)


def _add_up(distances: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Add both distances (2, B, N) in units of their scales (2,)."""
    return np.tensordot(1 / scales, distances, axes=1)


def _distances_to_other_classes(descriptors: Descriptors, labels: np.ndarray) -> Iterator[np.ndarray]:
    """Go through a sample of the images: distances (2, B, N), infinite within a class."""
    sample = np.random.default_rng(SEED).permutation(len(labels))[:SAMPLE]
    for batch in gen_batches(len(sample), BATCH_SIZE):
        rows = sample[batch]
        yield np.where(labels[rows, None] != labels, _distances(descriptors, rows), np.inf)


def _fit_threshold(descriptors: Descriptors, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Find both distances' scales (2,), and the threshold of their sum, from the nearest images of another class."""
    nearest = [batch.min(axis=2) for batch in _distances_to_other_classes(descriptors, labels)]
    scales = np.median(np.concatenate(nearest, axis=1), axis=1)
    sums = [_add_up(batch, scales).min(axis=1) for batch in _distances_to_other_classes(descriptors, labels)]
    nearest_sums = np.concatenate(sums)
    distinct = nearest_sums[nearest_sums > ROUNDING]  # a copy in another class is a wrong label, not a second object
    return scales, float(np.quantile(distinct, QUANTILE)) if len(distinct) else ROUNDING


def _cluster(descriptors: Descriptors, scales: np.ndarray, threshold: float) -> np.ndarray:
    """Number the groups of one class from 1: average linkage within the chains of images below the threshold.

    Average linkage never merges two chains, so this gives what it gives on all images, without their N × N distances.
    """
    chains = _chain(descriptors, scales, threshold)
    groups = np.zeros(len(chains), dtype=np.int64)
    for chain in np.unique(chains):
        members = np.flatnonzero(chains == chain)
        groups[members] = groups.max() + 1
        if 2 < len(members) <= MAX_CHAIN:
            batches = _batches_of_distances(_select(descriptors, members), scales)
            square = np.concatenate([distances for _, distances in batches])
            merges = linkage(squareform(square, checks=False), "average")
            groups[members] += fcluster(merges, threshold, "distance") - 1
    return groups


def _chain(descriptors: Descriptors, scales: np.ndarray, threshold: float) -> np.ndarray:
    """Number the chains: from image to image, each nearer to the next than the threshold."""
    chains = np.arange(len(descriptors[0]))
    for batch, distances in _batches_of_distances(descriptors, scales):
        rows, others = np.nonzero(distances < threshold)
        chains = _join(chains, chains[batch][rows], chains[others])
    return chains


def _batches_of_distances(descriptors: Descriptors, scales: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    for batch in gen_batches(len(descriptors[0]), BATCH_SIZE):
        yield batch, _add_up(_distances(descriptors, batch), scales).astype(np.float32)


def _join(numbers: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Renumber groups (N,) so that `first[i]` and `second[i]`, two of the numbers, become one."""
    size = numbers.max() + 1
    links = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(size, size))
    return connected_components(links, directed=False)[1][numbers]
