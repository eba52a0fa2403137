"""Which images belong together: copies, near-copies, frames of one object."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform
from sklearn.metrics.cluster import pair_confusion_matrix
from sklearn.utils import gen_batches

from utils.eda.copies import Copies
from utils.eda.looks import BATCH_SIZE, Looks

MAX_CHAIN = 5000  # images in a chain that average linkage takes apart; a longer chain is one group
LARGE_GROUP = 200  # images in a group whose pairs are not listed

Likenesses = Sequence[Looks | Copies]


def duplicate_groups(index: pd.DataFrame, likenesses: Likenesses) -> pd.Series:
    """Group images of one class that resemble each other in one way at least: their distance is below 1.

    Average linkage (Sokal and Michener 1958) of the smallest distance merges images up to 1; it does not chain
    look-alikes as single linkage does. `likenesses` are of the images of the index. Groups are named by their first
    image. Exact copies are one group, across classes too.
    """
    labels = index["class"].to_numpy()
    groups = np.zeros(len(index), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        groups[members] = groups.max() + _cluster([likeness.select(members) for likeness in likenesses])
    return join_copies(index, pd.Series(groups, index=index.index))


def join_copies(index: pd.DataFrame, groups: pd.Series, pairs: Sequence[tuple[int, int]] = ()) -> pd.Series:
    """Merge the groups that hold exact copies (same decoded pixels) of each other; named by their first image.

    `pairs` are positions of two images each whose groups are merged, too.
    """
    numbers = pd.Series(groups.factorize()[0], index=index.index)
    first_copies = numbers.groupby(index["pixels"]).transform("first").to_numpy()
    first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    numbers = numbers.to_numpy()
    ones, others = np.concatenate([numbers, numbers[first]]), np.concatenate([first_copies, numbers[second]])
    return index["path"].groupby(_join(numbers, ones, others)).transform("first")


def copies_across_classes(index: pd.DataFrame, copies: Copies) -> list[tuple[int, int]]:
    """Find the pairs of copies, exact or near, that have different labels: positions, the likest first."""
    labels, found = index["class"].to_numpy(), []
    for batch in gen_batches(len(labels), BATCH_SIZE):
        distances = np.where(labels[batch, None] != labels, copies.distances(batch), np.inf)
        for row, other in np.argwhere(distances < 1):
            if batch.start + row < other:
                found.append((distances[row, other], batch.start + int(row), int(other)))
    return [(first, second) for _, first, second in sorted(found)]


def pairs_within(groups: pd.Series, looks: Looks, copies: Copies) -> pd.DataFrame:
    """List the pairs of images of one group: positions `first` and `second`, distances by `colors` and by `features`.

    Groups of more than 200 images are left out.
    """
    tables = []
    for members in pd.Series(range(len(groups))).groupby(groups.to_numpy()).agg(np.array):
        if 1 < len(members) <= LARGE_GROUP:
            one, other = np.triu_indices(len(members), 1)
            pairs = {"first": members[one], "second": members[other]}
            for name, likeness in (("colors", looks), ("features", copies)):
                pairs[name] = likeness.select(members).distances(slice(None))[one, other]
            tables.append(pd.DataFrame(pairs))
    none = pd.DataFrame({"first": [], "second": [], "colors": [], "features": []}, dtype=float)  # numbers, not objects
    return pd.concat(tables, ignore_index=True) if tables else none


def pair_scores(groups: pd.Series, truth: pd.Series) -> tuple[float, float]:
    """Precision and recall of the pairs of images that `groups` puts together, against the groups in `truth`."""
    pairs = pair_confusion_matrix(truth, groups)
    right, found, real = pairs[1, 1], pairs[:, 1].sum(), pairs[1].sum()
    return float(right / found) if found else 1.0, float(right / real) if real else 1.0


def _cluster(likenesses: Likenesses) -> np.ndarray:
    """Number the groups of one class from 1: average linkage within the chains of images below the threshold.

    Average linkage never merges two chains, so this gives what it gives on all images, without their N × N distances.
    """
    chains = _chain(likenesses)
    groups = np.zeros(len(chains), dtype=np.int64)
    for chain in np.unique(chains):
        members = np.flatnonzero(chains == chain)
        groups[members] = groups.max() + 1
        if 2 < len(members) <= MAX_CHAIN:
            batches = _batches_of_distances([likeness.select(members) for likeness in likenesses])
            square = np.concatenate([distances for _, distances in batches])
            merges = linkage(squareform(square, checks=False), "average")
            groups[members] += fcluster(merges, 1, "distance") - 1
    return groups


def _chain(likenesses: Likenesses) -> np.ndarray:
    """Number the chains: from image to image, each nearer to the next than the threshold."""
    chains = np.arange(len(likenesses[0][0]))
    for batch, distances in _batches_of_distances(likenesses):
        rows, others = np.nonzero(distances < 1)
        chains = _join(chains, chains[batch][rows], chains[others])
    return chains


def _batches_of_distances(likenesses: Likenesses) -> Iterator[tuple[slice, np.ndarray]]:
    """Go through the images: their smallest distances (B, N) to all."""
    for batch in gen_batches(len(likenesses[0][0]), BATCH_SIZE):
        yield batch, np.min([likeness.distances(batch) for likeness in likenesses], axis=0).astype(np.float32)


def _join(numbers: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Renumber groups (N,) so that `first[i]` and `second[i]`, two of the numbers, become one."""
    size = numbers.max() + 1
    links = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(size, size))
    return connected_components(links, directed=False)[1][numbers]
