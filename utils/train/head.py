"""A linear layer on frozen features: the first step of linear probing, then fine-tuning (LP-FT)."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import nn

from utils.config import SEED
from utils.cross_validation import out_of_fold
from utils.datasets import ImageDataset, make_loader
from utils.features import extract_features, fingerprint
from utils.metrics import cross_entropy
from utils.model import predict, replace_classifier

COMPONENTS = 100  # principal axes that the head is fitted on
PENALTIES = (1.0, 10.0, 100.0)  # scikit-learn's C: the larger, the weaker
PENALTY_ROWS = 2000  # to choose the penalty on, at most
INT8_STEPS = 255  # over the range of all features
ABSENT_LOGIT = -1000.0  # of a class without images
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

    def predict(self, model: nn.Module, part: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Return logits (N, C) and labels (N,) of the images in `part`, rows of the table.

        The features are used again where `model` differs from the network behind them in its last layer only.
        """
        if fingerprint(model) != self.body:
            return predict(model, make_loader(self.image_set(part), batch_size=64))
        rows = pd.Series(np.arange(len(self.paths)), self.paths)
        plain = rows[~rows.index.duplicated()]
        asked = self.take(plain.loc[part["path"]].to_numpy())
        layer = model.get_classifier()
        with torch.inference_mode():
            logits = layer(torch.from_numpy(asked.features).to(layer.weight.device))
        return logits.cpu().numpy(), asked.labels


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
    features = [extract_features(network, make_loader(dataset, batch_size=64), cache) for dataset in datasets]
    table = pd.concat([dataset.index.assign(label=dataset.labels) for dataset in datasets])
    columns = [table[name].to_numpy() for name in ("path", "label", "group")]
    return Views(np.concatenate(features), *columns, fingerprint(network), image_set)


@threadpool_limits.wrap(limits=1)  # on so few rows, threads mostly wait for each other
def fit_head(views: Views, num_classes: int, class_weight: str | None = None) -> Head:
    """Fit a linear layer to features (M, D): weight (C, D) and bias (C,), the first step of LP-FT (Kumar et al. 2022).

    Logistic regression on the first 100 principal axes of the standardized features; its penalty is the one with the
    least cross-entropy in cross-validation by group. A class without images is never the answer. Features that vary by
    less than a step of 8 bits, as those of a plain background, count for little: standardized like the others, they
    would get weights that turn INT8's rounding into the answer.
    """
    features, labels = views.features, views.labels
    mean = features.mean(axis=0)
    scale = np.hypot(features.std(axis=0), (np.ptp(features) or 1) / INT8_STEPS)
    pca = PCA(min(COMPONENTS, *features.shape), random_state=SEED)
    inputs = pca.fit_transform((features - mean) / scale)
    unit = np.sqrt(10 / np.square(inputs).sum(axis=1).mean())  # a penalty then weighs the same whatever D is
    inputs *= unit
    some = np.sort(np.random.default_rng(SEED).permutation(len(labels))[:PENALTY_ROWS])

    def classifier(penalty: float) -> LogisticRegression:
        return LogisticRegression(C=penalty, class_weight=class_weight, max_iter=1000)

    def loss(penalty: float) -> float:
        probabilities = out_of_fold(classifier(penalty), inputs[some], labels[some], views.groups[some], repeats=1)[0]
        return cross_entropy(np.log(probabilities.clip(1e-9)), labels[some])

    best = classifier(_weakest_that_helps(loss)).fit(inputs, labels)
    coefficients, intercept = best.coef_, best.intercept_
    if len(coefficients) == 1:  # of two classes, scikit-learn keeps the difference only
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercept = np.concatenate([-intercept, intercept]) / 2
    coefficients = unit * coefficients @ pca.components_ / scale  # of the features as they come
    weight = np.zeros((num_classes, features.shape[1]))
    bias = np.full(num_classes, ABSENT_LOGIT)
    weight[best.classes_] = coefficients
    bias[best.classes_] = intercept - coefficients @ mean
    return weight, bias


def _weakest_that_helps(loss: Callable[[float], float]) -> float:
    """Weaken the penalty as long as that lowers the loss; the weaker it is, the longer a fit takes."""
    best, least = PENALTIES[0], loss(PENALTIES[0])
    for penalty in PENALTIES[1:]:
        if (now := loss(penalty)) >= least:
            break
        best, least = penalty, now
    return best


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
