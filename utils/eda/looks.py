"""Likeness of images by colors and light: good at frames of one object."""

from collections.abc import Iterator
from typing import NamedTuple, Self

import numpy as np
from sklearn.utils import gen_batches

from utils.config import SEED

COLOR_LEVELS = 16  # of each channel in the color histogram
THUMBNAIL = 8  # pixels a side: enough for light, shape and pose, too few for noise
BATCH_SIZE = 250  # images whose distances to all others are in memory at a time
SAMPLE = 2000  # images that a threshold is fitted on
QUANTILE = 0.05
ROUNDING = 0.01  # of the median distance to another class: images nearer than this differ by rounding only


class Looks(NamedTuple):
    """What images look like: colors (N, K), thumbnails (N, T), and a unit for the distance by each (2,)."""

    colors: np.ndarray
    thumbnails: np.ndarray
    units: np.ndarray

    def select(self, rows: np.ndarray) -> Self:
        """Return some of the images."""
        return Looks(self.colors[rows], self.thumbnails[rows], self.units)

    def distances(self, rows: np.ndarray | slice) -> np.ndarray:
        """Distances (B, N) of some images to all: both distances in their units, added up."""
        return np.tensordot(1 / self.units, self._both(rows), axes=1)

    def _both(self, rows: np.ndarray | slice) -> np.ndarray:
        """Distances (2, B, N): by colors (Hellinger), by thumbnails (root mean square)."""
        lengths = (self.thumbnails**2).sum(axis=1)
        squares = lengths[rows, None] + lengths - 2 * self.thumbnails[rows] @ self.thumbnails.T
        by_thumbnail = np.sqrt(squares.clip(0) / self.thumbnails.shape[1])
        return np.stack([1 - self.colors[rows] @ self.colors.T, by_thumbnail]).clip(1e-6)


def describe_looks(pictures: np.ndarray, labels: np.ndarray) -> Looks:
    """Describe pictures (N, S, S, 3) so that images at a distance below 1 are likely to show one object.

    Two images differ by their color histograms plus their thumbnails, each in units of the median distance from an
    image to the nearest one of another class. Images of two classes cannot show the same object, so the threshold of
    the sum is the data's own: 95 % of those nearest ones are farther away.
    """
    looks = Looks(*_describe(pictures), np.ones(2))
    nearest = [batch.min(axis=2) for batch in _distances_to_other_classes(looks, labels)]
    units = np.median(np.concatenate(nearest, axis=1), axis=1)
    batches = _distances_to_other_classes(looks, labels)
    nearest_sums = np.concatenate([np.tensordot(1 / units, batch, axes=1).min(axis=1) for batch in batches])
    distinct = nearest_sums[nearest_sums > ROUNDING]  # a copy in another class is a wrong label, not a second object
    return looks._replace(units=units * (np.quantile(distinct, QUANTILE) if len(distinct) else ROUNDING))


def color_histogram(picture: np.ndarray, levels: int = COLOR_LEVELS) -> np.ndarray:
    """Count the pixels of a picture (S, S, 3) by color, each channel cut into `levels` steps: (levels³,)."""
    colors = picture.reshape(-1, 3) // (256 // levels) @ np.array([levels**2, levels, 1])
    return np.bincount(colors, minlength=levels**3)


def _describe(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Describe pictures (N, S, S, 3) by the square roots of their color shares (N, K) and thumbnails (N, T)."""
    used = np.flatnonzero(sum(color_histogram(picture) for picture in pictures))  # few of the 4,096 colors occur
    colors = np.empty((len(pictures), len(used)), dtype=np.float32)
    for position, picture in enumerate(pictures):
        colors[position] = np.sqrt(color_histogram(picture)[used] / (picture.size / 3))
    side = pictures.shape[1] // THUMBNAIL
    blocks = pictures.reshape(len(pictures), THUMBNAIL, side, THUMBNAIL, side, 3)
    thumbnails = blocks.mean(axis=(2, 4), dtype=np.float32).reshape(len(pictures), -1)
    return colors, thumbnails - thumbnails.mean(axis=0)


def _distances_to_other_classes(looks: Looks, labels: np.ndarray) -> Iterator[np.ndarray]:
    """Go through a sample of the images: distances (2, B, N), infinite within a class."""
    sample = np.random.default_rng(SEED).permutation(len(labels))[:SAMPLE]
    for batch in gen_batches(len(sample), BATCH_SIZE):
        rows = sample[batch]
        yield np.where(labels[rows, None] != labels, looks._both(rows), np.inf)
