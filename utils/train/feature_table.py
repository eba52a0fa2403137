"""A table of features: computed once for all images, and taken apart by every fold."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from utils.config import THREADS
from utils.datasets import ImageDataset, make_loader
from utils.features import extract_features, fingerprint, last_block
from utils.model import is_small, predict


class FeatureTable(NamedTuple):
    """Features of images as they are and then of random versions of some, a row for each.

    `features` (M, D), and the `paths`, `labels` and `groups` (M,) of the images behind the rows. The first row of an
    image is the image as it is. `sizes` counts the features of each block of the network, `body` is its fingerprint,
    and `image_set` makes a Dataset of rows of the table of images.
    """

    features: np.ndarray
    paths: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    sizes: Sequence[int] | None = None
    body: str = ""
    image_set: Callable[..., ImageDataset] | None = None

    @property
    def unaugmented(self) -> np.ndarray:
        """Mark the rows (M,) that show an image as it is."""
        return ~pd.Index(self.paths).duplicated()

    @property
    def digest(self) -> str:
        """A hash of the features and of what they belong to."""
        found = hashlib.blake2b(np.ascontiguousarray(self.features), digest_size=16)
        found.update(repr([self.paths.tolist(), self.labels.tolist(), self.groups.tolist(), self.sizes]).encode())
        return found.hexdigest()

    def take(self, rows: np.ndarray) -> FeatureTable:
        """Select rows, by position or by a mask (M,)."""
        selected = self._replace(features=self.features[rows], paths=self.paths[rows])
        return selected._replace(labels=self.labels[rows], groups=self.groups[rows])

    def of(self, part: pd.DataFrame, augmented: Sequence[int] = ()) -> FeatureTable:
        """Select the images in `part` as they are and in its order, then the random versions of those of some labels.

        An image that `part` has several times is selected as often.
        """
        return self.take(self.positions(part["path"], augmented))

    def positions(self, paths: Sequence[str], augmented: Sequence[int] = ()) -> np.ndarray:
        """Find the rows of images, selected as in `of`."""
        plain = self.unaugmented
        first = pd.Series(np.flatnonzero(plain), self.paths[plain])
        varied = ~plain & np.isin(self.labels, augmented) & pd.Index(self.paths).isin(paths)
        return np.concatenate([first.loc[paths], np.flatnonzero(varied)])

    def last_features_of(self, model: nn.Module, part: pd.DataFrame) -> np.ndarray:
        """Return what `model` has of the images in `part`: the features (N, L) that its own last layer sees."""
        if fingerprint(model) == self.body:
            return last_block(self.of(part).features, self.sizes)
        return last_block(extract_features(model, make_loader(self.image_set(part))), self.sizes)

    def predict(self, model: nn.Module, part: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Return logits (N, C) and labels (N,) of the images in `part`.

        The features are used again where `model` differs from the network behind them in its last layer only.
        """
        if fingerprint(model) != self.body:
            return predict(model, make_loader(self.image_set(part)))
        rows, layer = self.of(part), model.get_classifier()
        with torch.inference_mode():
            logits = layer(torch.from_numpy(rows.features).to(layer.weight.device))
        return logits.cpu().numpy(), rows.labels

    def threads(self, shipped: nn.Module) -> int:
        """Say how many trainings like that of `shipped` are to run side by side, one on a core.

        All cores if it is small or only its last layer was trained; others have work for all threads themselves.
        """
        return THREADS if is_small(shipped) or fingerprint(shipped) == self.body else 1


def extract(
    network: nn.Module,
    image_set: Callable[..., ImageDataset],
    index: pd.DataFrame,
    versions: dict[str, int],
    cache: Path | None = None,
) -> FeatureTable:
    """Extract features of every image as it is, then of as many random `versions` as its class is to have.

    The network stays as it is, so one extraction serves every fold and every head. `index` has columns path, class and
    group; `image_set(part, augmented)` makes a Dataset of rows of it.
    """
    datasets = [image_set(index)]
    for epoch in range(1, max(versions.values(), default=0) + 1):
        names = [name for name, count in versions.items() if count >= epoch]
        datasets.append(image_set(index[index["class"].isin(names)], names).in_epoch(epoch))
    datasets = [dataset for dataset in datasets if len(dataset)]
    features = np.concatenate([extract_features(network, make_loader(dataset), cache) for dataset in datasets])
    table = pd.concat([dataset.index.assign(label=dataset.labels) for dataset in datasets])
    columns = [table[name].to_numpy() for name in ("path", "label", "group")]
    return FeatureTable(features, *columns, getattr(network, "sizes", None), fingerprint(network), image_set)
