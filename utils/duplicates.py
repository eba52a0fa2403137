"""Which images belong together: near-copies, frames of one object."""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from utils.images import read_image

THUMBNAIL = 32  # pixels a side: small enough to forget noise, large enough to tell two fruits apart
BLOCK = 1000


def duplicate_groups(folder: Path, index: pd.DataFrame) -> pd.Series:
    """Group images of one class that resemble each other more than images of different classes ever do.

    Similarity is the correlation of thumbnails after the data's mean picture is taken away; without that, every object
    before a plain background looks alike. The threshold is the data's own: images of two classes cannot show the same
    object, so 99 % of the most similar pairs across classes lie below it. Groups are named by their first image.
    """
    images = [read_image(folder / path).resize((THUMBNAIL, THUMBNAIL)) for path in index["path"]]
    pixels = np.stack([np.asarray(image, dtype=np.float32).ravel() for image in images])
    pixels -= pixels.mean(axis=0)
    pixels /= np.maximum(np.linalg.norm(pixels, axis=1, keepdims=True), 1e-6)
    labels = index["class"].to_numpy()
    across = np.concatenate([np.where(other, block, -1).max(axis=1) for block, other, _ in _blocks(pixels, labels)])
    threshold = np.quantile(across, 0.99)
    pairs = [np.argwhere(~other & (block > threshold)) + [start, 0] for block, other, start in _blocks(pixels, labels)]
    rows, columns = np.concatenate(pairs).T
    graph = coo_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(len(index),) * 2)
    component = pd.Series(connected_components(graph, directed=False)[1], index=index.index)
    return index["path"].groupby(component).transform("first")


def _blocks(pixels: np.ndarray, labels: np.ndarray):
    """Yield similarities (B, N) block by block, whether each pair is of two classes, and the block's first row."""
    for start in range(0, len(pixels), BLOCK):
        rows = slice(start, start + BLOCK)
        yield pixels[rows] @ pixels.T, labels[rows, None] != labels[None, :], start
