"""Which images belong together: copies, near-copies, frames of one object."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform

from utils.config import SEED
from utils.images import read_pictures

COLORS = 16  # steps a channel of the color histogram
THUMBNAIL = 8  # pixels a side: light, shape and pose, without noise
BLOCK = 250  # rows of distances held in memory at a time
SAMPLE = 4000  # images that are compared with all others to fit the threshold
LARGEST = 5000  # a chain of more images than this is one series, unexamined
QUANTILE = 0.05
COPY = 0.01  # of the usual distance to another class: nothing but rounding lies between
Views = tuple[np.ndarray, np.ndarray]


def duplicate_groups(folder: Path, index: pd.DataFrame, pictures: np.ndarray | None = None) -> pd.Series:
    """Group images of one class that resemble each other more than images of two classes ever do.

    Two images differ by their color histograms (Hellinger) plus their thumbnails (root mean square), each in units of
    the median distance from an image to the nearest one of another class. Images of two classes cannot show the same
    object, so the threshold is the data's own: 95 % of those nearest ones are farther away. Within a class, average
    linkage (Sokal and Michener 1958) merges up to the threshold; it does not chain look-alikes as single linkage does.
    `pictures` are `read_pictures` of the index, read here when they are not given. Groups are named by their first
    image. Exact copies are one group, across classes too.
    """
    pictures = read_pictures(folder, index) if pictures is None else pictures
    views, labels = _views(pictures), index["class"].to_numpy()
    scales, threshold = _fit(views, labels)
    groups = np.zeros(len(index), dtype=np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        groups[rows] = groups.max() + _cluster(tuple(view[rows] for view in views), scales, threshold)
    return join_copies(index, pd.Series(groups, index=index.index))


def join_copies(index: pd.DataFrame, groups: pd.Series) -> pd.Series:
    """Merge the groups that hold exact copies (same decoded pixels) of each other; named by their first image."""
    names, pixels = groups.factorize()[0], index["pixels"].factorize()[0]
    component = pd.Series(_components(names, names.max() + 1 + pixels)[names], index=index.index)
    return index["path"].groupby(component).transform("first")


def pair_scores(groups: pd.Series, truth: pd.Series) -> tuple[float, float]:
    """Precision and recall of the pairs of images that `groups` puts together, against the groups in `truth`."""
    pairs = lambda *keys: int((pd.concat(keys, axis=1).value_counts() ** 2).sum()) - len(groups)  # noqa: E731
    both, found, real = pairs(groups.rename("a"), truth.rename("b")), pairs(groups), pairs(truth)
    return both / found if found else 1.0, both / real if real else 1.0


def _views(pictures: np.ndarray) -> Views:
    """Describe pictures (N, S, S, 3) by colors (N, K), the square roots of shares, and thumbnails (N, T)."""

    def histogram(picture: np.ndarray) -> np.ndarray:
        levels = picture.reshape(-1, 3) // (256 // COLORS) @ np.array([COLORS**2, COLORS, 1])
        return np.bincount(levels, minlength=COLORS**3)

    used = np.flatnonzero(sum(histogram(picture) for picture in pictures))
    colors = np.empty((len(pictures), len(used)), dtype=np.float32)
    for row, picture in zip(colors, pictures, strict=True):
        row[:] = np.sqrt(histogram(picture)[used] / (picture.size / 3))
    side = pictures.shape[1] // THUMBNAIL
    blocks = pictures.reshape(len(pictures), THUMBNAIL, side, THUMBNAIL, side, 3)
    thumbnails = blocks.mean(axis=(2, 4), dtype=np.float32).reshape(len(pictures), -1)
    return colors, thumbnails - thumbnails.mean(axis=0)


def _distances(views: Views, others: Views, rows: np.ndarray) -> np.ndarray:
    """Distances (2, len(rows), N) of the given rows of `views` to all of `others`: by colors, by thumbnails."""
    (colors, thumbnails), (all_colors, all_thumbnails) = (view[rows] for view in views), others
    squares = (thumbnails**2).sum(axis=1)[:, None] + (all_thumbnails**2).sum(axis=1) - 2 * thumbnails @ all_thumbnails.T
    return np.stack([1 - colors @ all_colors.T, np.sqrt(squares.clip(0) / thumbnails.shape[1])]).clip(1e-6)


def _fit(views: Views, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Scale both distances by, and find the threshold among, the nearest images of another class."""
    sample = np.random.default_rng(SEED).permutation(len(labels))[:SAMPLE]

    def nearest(combine) -> np.ndarray:
        blocks = np.array_split(sample, -(-len(sample) // BLOCK))
        found = [
            np.where(labels[rows, None] != labels, combine(_distances(views, views, rows)), np.inf).min(axis=-1)
            for rows in blocks
        ]
        return np.concatenate(found, axis=-1)

    scales = np.median(nearest(lambda distances: distances), axis=1)
    together = nearest(lambda distances: np.tensordot(1 / scales, distances, axes=1))
    together = together[together > COPY]  # a copy in another class is a wrong label, not a second object
    return scales, float(np.quantile(together, QUANTILE)) if len(together) else COPY


def _cluster(views: Views, scales: np.ndarray, threshold: float) -> np.ndarray:
    """Number the groups of one class from 1: components of the pairs below the threshold, then average linkage."""
    chains = np.arange(len(views[0]))
    for rows, block in _blocks(views, scales, np.arange(len(chains))):
        first, second = np.nonzero(block < threshold)
        chains = _components(np.append(rows[first], np.arange(len(chains))), np.append(second, chains))
        chains = np.unique(chains, return_index=True)[1][chains]
    groups = np.zeros(len(chains), dtype=np.int64)
    for chain in np.unique(chains):
        members = np.flatnonzero(chains == chain)
        groups[members] = groups.max() + 1
        if 2 < len(members) <= LARGEST:
            chained = tuple(view[members] for view in views)
            square = np.concatenate([block for _, block in _blocks(chained, scales, np.arange(len(members)))])
            condensed = squareform(square, checks=False)
            groups[members] += fcluster(linkage(condensed, "average"), threshold, "distance") - 1
    return groups


def _blocks(views: Views, scales: np.ndarray, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for part in np.array_split(rows, -(-len(rows) // BLOCK)):
        yield part, np.tensordot(1 / scales, _distances(views, views, part), axes=1).astype(np.float32)


def _components(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Number the connected components of the graph with these edges, by node."""
    size = int(max(first.max(), second.max())) + 1
    edges = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(size, size))
    return connected_components(edges, directed=False)[1]
