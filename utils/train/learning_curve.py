"""How many more photos, and of what: a learning curve on frozen features, and the power law that extends it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from utils.config import SEED
from utils.cross_validation import grouped_folds
from utils.intervals import resample_weights
from utils.metrics import weighted_macro_f1
from utils.train.head import Views, fit_head

SHARES = (1 / 8, 1 / 4, 1 / 2, 1)  # of the groups that a fold trains on
DRAWS = 3  # of these groups
RESAMPLES = 500  # of the images that are asked about
EXPONENTS = np.linspace(0.1, 2, 20)  # of the power law: errors fall neither more slowly nor faster


class Curve(NamedTuple):
    """What heads that were trained on parts of the groups answer to images of groups that they never saw.

    `images` (S, C) counts the images of each class that a head was trained on, from few to all; `answers` (S, R, N) are
    classes by size and draw, to images of the classes `labels` (N,) in `groups` (N,).
    """

    images: np.ndarray
    answers: np.ndarray
    labels: np.ndarray
    groups: np.ndarray

    def errors(self, resamples: int = RESAMPLES) -> np.ndarray:
        """1 − macro-F1 by size: first as measured, then of resampled draws and images, by group (1 + B, S)."""
        draws, generator = self.answers.shape[1], np.random.default_rng(SEED)
        weights = resample_weights(self.labels, self.groups, resamples)
        weights = np.concatenate([np.ones((1, len(self.labels))), weights])
        chosen = generator.multinomial(draws, np.full(draws, 1 / draws), size=resamples) / draws
        chosen = np.concatenate([np.full((1, draws), 1 / draws), chosen])  # (1 + B, R)
        errors = np.zeros((resamples + 1, len(self.answers)))
        for size, answers in enumerate(self.answers):
            scores = [weighted_macro_f1(self.labels, answer, self.images.shape[1], weights) for answer in answers]
            errors[:, size] = 1 - (chosen * np.stack(scores, axis=1)).sum(axis=1)
        return errors


def trace_curve(views: Views, num_classes: int, thinned: Sequence[int], draws: int = DRAWS, shares=SHARES) -> Curve:
    """Train heads on an eighth, a quarter, half and all of the groups of the classes `thinned`, and all of the others.

    In five folds, groups whole. The parts are nested, in each draw another order. Random versions of an image go where
    it goes, and are not asked about.
    """
    image_of = pd.factorize(views.paths)[0]  # the first rows are the images as they are
    count = image_of.max() + 1
    labels, groups = views.labels[:count], views.groups[:count]
    images = np.zeros((len(shares), num_classes))
    answers = np.zeros((len(shares), draws, count), dtype=int)
    folds, generator = grouped_folds(labels, groups), np.random.default_rng(SEED)
    for train, test in folds:
        for draw in range(draws):
            places = np.ones(count)  # of images that no head is trained on
            places[train] = _nested_places(labels[train], groups[train], generator)
            places[train] *= np.isin(labels[train], thinned)  # 0: always there
            for size, share in enumerate(shares):
                known = places < share
                images[size] += np.bincount(labels[known], minlength=num_classes) / (len(folds) * draws)
                if draw and share == 1:  # the same images as in the first draw
                    answers[size, draw, test] = answers[size, 0, test]
                    continue
                weight, bias = fit_head(views.take(known[image_of]), num_classes)
                answers[size, draw, test] = (views.features[test] @ weight.T + bias).argmax(axis=1)
    return Curve(images, answers, labels, groups)


def _nested_places(labels: np.ndarray, groups: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Put the groups of each class in a random order; → the place (N,) of each image, from 0 to below 1."""
    places = np.zeros(len(labels))
    for label in np.unique(labels):
        names, group_of = np.unique(groups[labels == label], return_inverse=True)
        places[labels == label] = (generator.permutation(len(names)) / len(names))[group_of]
    return places


def extend_errors(sizes: np.ndarray, errors: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Fit error = a + b · size^-c to each row of errors (B, S); → the errors (B, T) at the sizes `wanted` (T,).

    Cortes et al. 1993 (Learning curves: asymptotic values and rate of convergence), Hestness et al. 2017 (arXiv
    1712.00409). Least squares with a, b ≥ 0, for each exponent c on a grid; the best one counts.
    """
    best, found = np.full(len(errors), np.inf), np.zeros((len(errors), len(wanted)))
    for exponent in EXPONENTS:
        x, new = sizes**-exponent, np.asarray(wanted) ** -exponent
        centered = x - x.mean()
        slope = (errors @ centered / (centered @ centered)).clip(0)
        floor = errors.mean(axis=1) - slope * x.mean()
        through_zero = errors @ x / (x @ x)
        slope, floor = np.where(floor < 0, through_zero, slope), floor.clip(0)
        loss = np.square(floor[:, None] + slope[:, None] * x - errors).sum(axis=1)
        better = loss < best
        best[better] = loss[better]
        found[better] = (floor[:, None] + slope[:, None] * new)[better]
    return found
