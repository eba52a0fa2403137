"""A linear layer on frozen features: the first step of linear probing, then fine-tuning (LP-FT)."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from utils.config import THREADS
from utils.datasets import ImageDataset, make_loader
from utils.features import extract_features, fingerprint
from utils.model import is_small, predict, replace_classifier
from utils.train.discriminant import fit_layer

Head = tuple[np.ndarray, np.ndarray]  # weight (C, D) and bias (C,)


class Views(NamedTuple):
    """What a network's last layer sees of images as they are and then of random versions of some, a row for each.

    `features` (M, D), and the `paths`, `labels` and `groups` (M,) of the images behind the rows. The first row of an
    image is the image as it is. `body` is the fingerprint of the network, `image_set` makes a Dataset of table rows.
    """

    features: np.ndarray
    paths: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    body: str = ""
    image_set: Callable[..., ImageDataset] | None = None

    def take(self, rows: np.ndarray) -> "Views":
        """Select rows, by position or by a mask (M,)."""
        selected = self._replace(features=self.features[rows], paths=self.paths[rows])
        return selected._replace(labels=self.labels[rows], groups=self.groups[rows])

    def of(self, part: pd.DataFrame) -> "Views":
        """Select all rows of the images in `part`, rows of the table."""
        return self.take(pd.Index(self.paths).isin(part["path"]))

    def plain(self, part: pd.DataFrame) -> "Views":
        """Select the images in `part`, rows of the table, as they are and in its order."""
        rows = pd.Series(np.arange(len(self.paths)), self.paths)
        return self.take(rows[~rows.index.duplicated()].loc[part["path"]].to_numpy())

    def features_of(self, model: nn.Module, part: pd.DataFrame) -> np.ndarray:
        """Return what the last layer of `model` sees of the images in `part`, (N, D)."""
        if fingerprint(model) != self.body:
            return extract_features(model, make_loader(self.image_set(part)))
        return self.plain(part).features

    def predict(self, model: nn.Module, part: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Return logits (N, C) and labels (N,) of the images in `part`, rows of the table.

        The features are used again where `model` differs from the network behind them in its last layer only.
        """
        if fingerprint(model) != self.body:
            return predict(model, make_loader(self.image_set(part)))
        asked, layer = self.plain(part), model.get_classifier()
        with torch.inference_mode():
            logits = layer(torch.from_numpy(asked.features).to(layer.weight.device))
        return logits.cpu().numpy(), asked.labels

    def threads(self, shipped: nn.Module) -> int:
        """Say how many trainings like that of `shipped` are to run side by side, one on a core.

        All cores if it is small or only its last layer was trained; others have work for all threads themselves.
        """
        return THREADS if is_small(shipped) or fingerprint(shipped) == self.body else 1


def extract_views(
    network: nn.Module,
    image_set: Callable[..., ImageDataset],
    index: pd.DataFrame,
    versions: dict[str, int],
    cache: Path | None = None,
) -> Views:
    """Extract features of every image as it is, then of as many random `versions` as its class is to have.

    The network stays as it is, so one extraction serves every fold and every head. `index` has columns path, class and
    group; `image_set(part, augmented)` makes a Dataset of rows of it.
    """
    datasets = [image_set(index)]
    for epoch in range(1, max(versions.values(), default=0) + 1):
        names = [name for name, count in versions.items() if count >= epoch]
        datasets.append(image_set(index[index["class"].isin(names)], names).in_epoch(epoch))
    datasets = [dataset for dataset in datasets if len(dataset)]
    features = [extract_features(network, make_loader(dataset), cache) for dataset in datasets]
    table = pd.concat([dataset.index.assign(label=dataset.labels) for dataset in datasets])
    columns = [table[name].to_numpy() for name in ("path", "label", "group")]
    return Views(np.concatenate(features), *columns, fingerprint(network), image_set)


def fit_head(views: Views, num_classes: int, class_weight: str | None = None) -> Head:
    """Fit a linear layer to features (M, D): weight (C, D) and bias (C,); see `discriminant.fit_layer`."""
    return fit_layer(views.features, views.labels, views.groups, num_classes, class_weight).layer


def attach_head(network: nn.Module, head: Head) -> nn.Module:
    """Copy a network and put a head in place of its last layer; → the copy."""
    model = copy.deepcopy(network)
    weight, bias = head
    replace_classifier(model, len(bias))
    layer = model.get_classifier()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    return model
