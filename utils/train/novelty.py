"""Out-of-distribution images: how far an image lies from all classes, and whether that finds what is none of them."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from utils import parallel
from utils.config import SEED
from utils.cross_validation import OutOfFold, fold_parts
from utils.files import remembered_arrays
from utils.intervals import resample_weights, wilson_interval
from utils.train.feature_table import FeatureTable
from utils.train.head import fit_discriminants, principal_axes

WEIGHTS = 2**15  # of the axes, unless there are as many classes: 64 KiB in the deployed file, in 16 bits each
SHRINKAGE = 0.2
KEPT = 0.95  # of images of the classes, by the threshold
RESAMPLES = 500
FITTED_IMAGES = 2000  # at most, to train on and to fit a detector to
LEFT_OUT = 4  # classes, at most: each is a training
REQUIRED = 0.7  # AUROC that the whole interval has to lie above


class Detector(NamedTuple):
    """Distance to the nearest class, Mahalanobis++ (Müller and Hein 2025, arXiv 2505.18032): of features of length 1.

    `weight` (K, D) and `bias` (K,) lead to the principal axes, in units of `deviations` (K,), the standard deviations
    within a class, and `centers` (C, K) are the classes' means there. Off these axes, distance is that from the `mean`
    (D,) of all images, in units of `rest`.
    """

    weight: np.ndarray
    bias: np.ndarray
    deviations: np.ndarray
    centers: np.ndarray
    mean: np.ndarray
    rest: np.ndarray

    def distances(self, features: np.ndarray) -> np.ndarray:
        """Say how far features (N, D) lie from the nearest class (N,); the deployed file computes the same."""
        directions = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
        places = directions @ self.weight.T + self.bias
        nearest = np.square(places[:, None] - self.centers).sum(axis=2).min(axis=1)
        off = np.square(directions - self.mean).sum(axis=1) - np.square(places * self.deviations).sum(axis=1)
        return np.sqrt(nearest + off.clip(0) / self.rest**2)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Give all parts as a checkpoint holds them, the largest two in 16 bits."""
        parts = {name: torch.tensor(part, dtype=torch.float32) for name, part in self._asdict().items()}
        return parts | {name: parts[name].half() for name in ("weight", "mean")}


def fit_detector(features: np.ndarray, labels: np.ndarray) -> Detector:
    """Fit class means and the covariance that they share to features (N, D) of known images of classes (N,).

    The covariance is shrunk (Friedman 1989). Beyond the first axes it is one variance for all, which changes little and
    makes the deployed file small.
    """
    labels = np.unique(labels, return_inverse=True)[1]
    directions = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    mean, axes = principal_axes(directions)
    count = max(labels.max() + 1, WEIGHTS // features.shape[1])
    dimensions, axes = len(axes), axes[-count:]  # the last ones are the longest
    rows = (directions - mean) @ axes.T
    known = fit_discriminants(rows, labels, labels.max() + 1)
    deviations = np.sqrt(known.shrunk(SHRINKAGE))
    weight = (known.basis / deviations).T @ axes
    off = np.square(directions - mean).sum() - np.square(rows).sum()
    rest = (1 - SHRINKAGE) * off / len(rows) / max(dimensions - len(axes), 1) + SHRINKAGE * known.variances.mean()
    return Detector(weight, -weight @ mean, deviations, known.means @ (known.basis / deviations), mean, np.sqrt(rest))


def fit(network: nn.Module, table: FeatureTable, train: pd.DataFrame) -> Detector:
    """Fit a detector to the last layer's features of the images in `train`; 2,000 of them are enough."""
    sample = _sample(train)
    return fit_detector(table.last_features_of(network, sample), sample["class"].to_numpy())


def _sample(train: pd.DataFrame) -> pd.DataFrame:
    return train.sample(min(FITTED_IMAGES, len(train)), random_state=SEED).sort_index()


def out_of_fold(
    oof: OutOfFold, shipped: nn.Module, table: FeatureTable, index: pd.DataFrame, fold_of: np.ndarray
) -> np.ndarray:
    """Measure how far each image (N,) of `index` lies, by networks and detectors that saw neither it nor its group.

    `oof` has the networks of the folds `fold_of` (N,), as weights of the `shipped` one.
    """
    distances = np.zeros(len(index))
    for fold, (test, valid) in zip(oof.networks, fold_parts(index["class"], fold_of), strict=True):
        network = copy.deepcopy(shipped)
        network.load_state_dict(fold["state"], strict=False)
        detector = fit(network, table, index[~test & ~valid])
        distances[test] = detector.distances(table.last_features_of(network, index[test]))
    return distances


def leave_classes_out(
    fit_network: Callable, table: FeatureTable, index: pd.DataFrame, fold_of: np.ndarray, shipped: nn.Module
) -> pd.DataFrame:
    """Train without a class, then predict it, among images of the others that were not trained on either.

    `fit_network(train, valid)` returns a network, as it has returned the `shipped` one. Each class in turn, of many
    four; of the others, two folds of `fold_of` (N,) are predicted. → a row per image: the class left_out, path, group,
    whether it is outside the classes trained on, and its distance.
    """
    parts, jobs = fold_parts(index["class"], fold_of), []
    names = np.random.default_rng(SEED).permutation(index["class"].unique())[:LEFT_OUT]
    for number, name in enumerate(names):
        outside = (index["class"] == name).to_numpy()
        for test, valid in parts[number:] + parts[:number]:
            sides = ~test & ~valid, valid, test
            if all((side & ~outside).any() for side in sides):  # nowhere, where there are so few groups
                jobs.append((name, outside, test, valid))
                break

    def measure(job: tuple) -> pd.DataFrame:
        name, outside, test, valid = job
        train = _sample(index[~test & ~valid & ~outside])
        network, shown = fit_network(train, index[valid & ~outside]), index[test | valid | outside]
        distances = fit(network, table, train).distances(table.last_features_of(network, shown))
        columns = {"left_out": name, "outside": shown["class"] == name, "distance": distances}
        return shown[["path", "group"]].assign(**columns)

    tables = list(parallel.run(measure, jobs, "classes left out", table.threads(shipped)))
    return pd.concat(tables or [pd.DataFrame(columns=["left_out", "path", "group", "outside", "distance"])])


def score(shown: pd.DataFrame) -> dict:
    """Score the table of `leave_classes_out`: `auroc`, its 95 % interval by group, and `caught`.

    Means over the classes left out. Caught is the share of their images that lie beyond 95 % of the others. Detection
    `works` if the whole interval lies above 0.7, from where Hosmer and Lemeshow 2000 call a discrimination acceptable.
    """
    curves, caught = [], []
    for _, table in shown.groupby("left_out"):
        outside, distances = table["outside"].to_numpy(bool), table["distance"].to_numpy(float)
        weights = resample_weights(outside, table["group"].to_numpy(), RESAMPLES)
        curves.append(_auroc(distances, outside, np.concatenate([np.ones((1, len(table))), weights])))
        caught.append((distances[outside] > np.quantile(distances[~outside], KEPT)).mean())
    found = {"auroc": np.nan, "auroc_ci95": [np.nan, np.nan], "caught": np.nan, "required": REQUIRED, "works": False}
    if curves:  # with so few groups, no class could be left out
        auroc, *resampled = np.mean(curves, axis=0)
        low, high = map(float, np.percentile(resampled, [2.5, 97.5]))
        found.update(auroc=float(auroc), auroc_ci95=[low, high], caught=float(np.mean(caught)), works=low > REQUIRED)
    return found


def _auroc(distances: np.ndarray, outside: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Say how often an image outside lies farther, ties counting half, under rows of weights (B, N); → (B,)."""
    farther = (np.sign(distances[outside][:, None] - distances[~outside]) + 1) / 2
    out, inside = weights[:, outside], weights[:, ~outside]
    return (out @ farther * inside).sum(axis=1) / (out.sum(axis=1) * inside.sum(axis=1))


def evaluate(
    fit_network: Callable,
    table: FeatureTable,
    index: pd.DataFrame,
    oof: OutOfFold,
    fold_of: np.ndarray,
    shipped: nn.Module,
    run: Path,
    parts: Sequence[object],
) -> tuple[Detector, dict]:
    """Fit the detector that may be deployed, and find out whether it works, without the test part's say.

    `fold_of` (N,) are the folds behind `oof`. What `leave_classes_out` finds is remembered in the folder of the `run`,
    by the `parts` that a training depends on. Returns the detector and, for the report: `auroc`, `caught`, `works` as
    in `score`; `threshold`, beyond which 5 % of the classes' images lie, out of fold; and `kept`, the share of the test
    part that is not called unknown.
    """
    known = (index["split"] != "test").to_numpy()

    def compute() -> dict[str, np.ndarray]:
        shown = leave_classes_out(fit_network, table, index[known], fold_of[known], shipped)
        return {name: np.array(column.tolist()) for name, column in shown.items()}

    parts = [*parts, fold_of.tolist(), known.tolist()]
    section = score(pd.DataFrame(remembered_arrays(run / "classes_left_out.npz", parts, compute)))
    section["threshold"] = float(np.quantile(out_of_fold(oof, shipped, table, index, fold_of)[known], KEPT))
    detector, test = fit(shipped, table, index[index["split"] == "train"]), index[~known]
    kept = int((detector.distances(table.last_features_of(shipped, test)) <= section["threshold"]).sum())
    section.update(kept=kept / len(test), kept_ci95=wilson_interval(kept, len(test)))
    return detector, section
