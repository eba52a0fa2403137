"""The learning curve: scores of heads, on frozen features, by the number of images that they are trained on."""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd

from utils import parallel
from utils.config import SEED, THREADS
from utils.cross_validation import MANY, grouped_folds
from utils.intervals import resample_weights
from utils.metrics import weighted_macro_f1
from utils.train.head import Views, fit_head

SHARES = (1 / 8, 1 / 4, 1 / 2, 1)  # of the groups that a fold trains on
DRAWS = 3  # of these groups
RESAMPLES = 500  # of the draws, and of the images that are asked about


class Curve(NamedTuple):
    """What heads that were trained on parts of the groups answer to images of groups that they never saw.

    `images` (S, C) counts the images of each class that a head was trained on, from few to all, of which only the
    classes `thinned` vary. `answers` (S, R, N) are classes, by size and draw, to images of `labels` (N,) and `groups`.
    """

    images: np.ndarray
    thinned: list[int]
    answers: np.ndarray
    labels: np.ndarray
    groups: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Images to train on, (S,), the mean over the thinned classes."""
        return self.images[:, self.thinned].mean(axis=1)

    def errors(self, label: int | None = None) -> np.ndarray:
        """1 − macro-F1, or 1 − recall of a class, by size; as measured, then of resampled draws and images (1 + B, S).

        Images are resampled by group, and the same ones at every size.
        """
        generator, draws = np.random.default_rng(SEED), self.answers.shape[1]
        weights = resample_weights(self.labels, self.groups, RESAMPLES)
        weights = np.concatenate([np.ones((1, len(self.labels))), weights])
        chosen = generator.multinomial(draws, np.full(draws, 1 / draws), size=RESAMPLES) / draws
        chosen = np.concatenate([np.full((1, draws), 1 / draws), chosen])  # (1 + B, R)
        scores = [[self._score(answer, weights, label) for answer in answers] for answers in self.answers]
        return 1 - np.einsum("srb,br->bs", np.array(scores), chosen)

    def spread(self) -> float:
        """Estimate the standard deviation of macro-F1, at the largest size, over sets of training images.

        From draws of a quarter and of half the groups: the variance falls as sets grow, and halves of one set vary half
        as much as sets of that size that share nothing.
        """
        weights = np.ones((1, len(self.labels)))
        scores = np.array([[self._score(answer, weights, None)[0] for answer in answers] for answers in self.answers])
        quarter, half = scores[-3:-1].var(axis=1, ddof=1)
        return float(np.sqrt((quarter / 2 + half) / 2))

    def _score(self, answer: np.ndarray, weights: np.ndarray, label: int | None) -> np.ndarray:
        if label is None:
            return weighted_macro_f1(self.labels, answer, self.images.shape[1], weights)
        inside = weights[:, self.labels == label]
        return inside @ (answer[self.labels == label] == label) / np.maximum(inside.sum(axis=1), 1e-12)


def trace_curve(views: Views, num_classes: int, shares: Sequence[float] = SHARES) -> Curve:
    """Train heads on an eighth, a quarter, half and all of the groups, in three draws.

    In five folds, groups whole. The parts are nested. Random versions of an image go where it goes, and are not asked
    about.
    """
    return _trace(views, list(range(num_classes)), num_classes, shares, DRAWS)


def thin_class(views: Views, curve: Curve, label: int) -> Curve:
    """Trace what a single class does to the scores: half of its groups, in one draw, and all of them, as in `curve`."""
    half = _trace(views, [label], curve.images.shape[1], (1 / 2,), draws=1)
    images = np.stack([half.images[0], curve.images[-1]])
    return half._replace(images=images, answers=np.stack([half.answers[0], curve.answers[-1, :1]]))


def _trace(views: Views, thinned: list[int], num_classes: int, shares: Sequence[float], draws: int) -> Curve:
    image_of = pd.factorize(views.paths)[0]  # the first rows are the images as they are
    count = image_of.max() + 1
    labels, groups = views.labels[:count], views.groups[:count]
    images, answers = np.zeros((len(shares), num_classes)), np.zeros((len(shares), draws, count), dtype=int)
    folds, generator, jobs = grouped_folds(labels, groups), np.random.default_rng(SEED), []
    if count >= MANY:
        folds = folds[:2]  # they tell enough
    for (train, test), draw in product(folds, range(draws)):
        places = np.ones(count)  # of images that no head is trained on
        places[train] = _nested_places(labels[train], groups[train], generator)
        places[train] *= np.isin(labels[train], thinned)  # 0: always there
        for size, share in enumerate(shares):
            images[size] += np.bincount(labels[places < share], minlength=num_classes) / (len(folds) * draws)
            if share < 1 or draw == 0:  # all groups are the same ones in every draw
                jobs.append((size, [draw] if share < 1 else list(range(draws)), places < share, test))

    rows = views._replace(image_set=None)  # the rest is enough, and what workers are sent

    def ask(job: tuple) -> np.ndarray:
        _, _, known, test = job
        weight, bias = fit_head(rows.take(known[image_of]), num_classes)
        return (rows.features[test] @ weight.T + bias).argmax(axis=1)

    for (size, of_draws, _, test), answer in zip(jobs, parallel.run(ask, jobs, "learning curve", THREADS), strict=True):
        answers[size][np.ix_(of_draws, test)] = answer
    asked = np.sort(np.concatenate([test for _, test in folds]))
    return Curve(images, thinned, answers[..., asked], labels[asked], groups[asked])


def _nested_places(labels: np.ndarray, groups: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Put the groups of each class in a random order; → the place (N,) of each image, from 0 to below 1."""
    places = np.zeros(len(labels))
    for label in np.unique(labels):
        names, group_of = np.unique(groups[labels == label], return_inverse=True)
        places[labels == label] = (generator.permutation(len(names)) / len(names))[group_of]
    return places


def measured(curve: Curve, label: int | None = None) -> pd.DataFrame:
    """List macro-F1, or a class's recall, by the number of images to train on; → a row each: score, low, high."""
    scores = 1 - curve.errors(label)
    sizes = curve.sizes if label is None else curve.images[:, label]
    columns = {"score": scores[0], "low": percentile(scores, 2.5), "high": percentile(scores, 97.5)}
    return pd.DataFrame(columns, index=pd.Index(sizes, name="images"))


def percentile(values: np.ndarray, percent: float) -> np.ndarray:
    """Take a percentile of resampled values (1 + B, S), of which the first row is what was measured; → (S,)."""
    return np.percentile(values[1:], percent, axis=0)
