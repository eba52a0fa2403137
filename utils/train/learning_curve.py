"""How many more photos, and of what: a learning curve on frozen features, and the power law that extends it."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from utils.config import SEED, THREADS
from utils.cross_validation import grouped_folds
from utils.intervals import resample_weights
from utils.metrics import weighted_macro_f1
from utils.progress import progress
from utils.train.head import Views, fit_head

SHARES = (1 / 8, 1 / 4, 1 / 2, 1)  # of the groups that a fold trains on
DRAWS = 3  # of these groups
RESAMPLES = 500  # of the draws, and of the images that are asked about
EXPONENTS = np.linspace(0, 1, 11)  # of the power law; 0 is a straight line against the logarithm
WIDER = 3  # times the variance that a larger set should lose: bench/learning_curve.py says how often that is enough


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
        return inside @ (answer[self.labels == label] == label) / inside.sum(axis=1)


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


@threadpool_limits.wrap(limits=1)  # heads are fitted side by side instead
def _trace(views: Views, thinned: list[int], num_classes: int, shares: Sequence[float], draws: int) -> Curve:
    image_of = pd.factorize(views.paths)[0]  # the first rows are the images as they are
    count = image_of.max() + 1
    labels, groups = views.labels[:count], views.groups[:count]
    images, answers = np.zeros((len(shares), num_classes)), np.zeros((len(shares), draws, count), dtype=int)
    folds, generator, jobs = grouped_folds(labels, groups), np.random.default_rng(SEED), []
    for (train, test), draw in product(folds, range(draws)):
        places = np.ones(count)  # of images that no head is trained on
        places[train] = _nested_places(labels[train], groups[train], generator)
        places[train] *= np.isin(labels[train], thinned)  # 0: always there
        for size, share in enumerate(shares):
            images[size] += np.bincount(labels[places < share], minlength=num_classes) / (len(folds) * draws)
            if share < 1 or draw == 0:  # all groups are the same ones in every draw
                jobs.append((size, [draw] if share < 1 else list(range(draws)), places < share, test))

    def ask(job: tuple) -> None:
        size, of_draws, known, test = job
        weight, bias = fit_head(views.take(known[image_of]), num_classes)
        answers[size][np.ix_(of_draws, test)] = (views.features[test] @ weight.T + bias).argmax(axis=1)

    with ThreadPoolExecutor(THREADS) as pool:
        list(progress(pool.map(ask, jobs), "learning curve", len(jobs)))
    return Curve(images, thinned, answers, labels, groups)


def _nested_places(labels: np.ndarray, groups: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Put the groups of each class in a random order; → the place (N,) of each image, from 0 to below 1."""
    places = np.zeros(len(labels))
    for label in np.unique(labels):
        names, group_of = np.unique(groups[labels == label], return_inverse=True)
        places[labels == label] = (generator.permutation(len(names)) / len(names))[group_of]
    return places


def extend_errors(sizes: np.ndarray, errors: np.ndarray, wanted: Sequence[float]) -> np.ndarray:
    """Fit error = a + b · size^-c, b ≥ 0, to errors (B, S) by least squares; → errors (F, B, T) at the sizes `wanted`.

    Such a power law is due to Cortes et al. 1993 (Learning curves: asymptotic values and rate of convergence), see
    Hestness et al. 2017 (arXiv 1712.00409). So few sizes tell neither the exponent nor from where on it holds, so there
    is a fit for each of several exponents to the last two sizes, the last three, and so on.
    """
    fits = []
    for exponent, first in product(EXPONENTS, range(len(sizes) - 1)):
        x, new = (values**-exponent if exponent else -np.log(values) for values in (sizes[first:], np.array(wanted)))
        centered, mean = x - x.mean(), errors[:, first:].mean(axis=1)
        slope = (errors[:, first:] @ centered / max(centered @ centered, 1e-12)).clip(0)
        fits.append(mean[:, None] + slope[:, None] * (new - x.mean()))
    return np.stack(fits)


def forecast(curve: Curve, wanted: Sequence[float], spread: float) -> pd.DataFrame:
    """Extend macro-F1 to the numbers of images `wanted`; → a row each: macro_f1, low, high, gain, gain_low, gain_high.

    The 95 % intervals are those of what one would measure then. They vary the images asked about, the fit,
    and the `spread`, as other images to train on would give other scores: a Student's t, for so few draws.
    """
    errors, generator = curve.errors(), np.random.default_rng(SEED)
    law = extend_errors(curve.sizes, errors, [curve.sizes[-1], *wanted])
    chosen = law[generator.integers(len(law), size=len(errors)), np.arange(len(errors))]
    chosen[0] = law[:, 0].mean(axis=0)
    gain = chosen[:, :1] - chosen[:, 1:]
    noise = spread * generator.standard_t(2 * (DRAWS - 1), size=(len(errors), 1))
    gain[1:] += noise[1:] * np.sqrt(WIDER * (1 - curve.sizes[-1] / np.array(wanted)))
    gain = np.minimum(gain, errors[:, -1:])  # no more than all can be right
    level = (1 - errors[:, -1:] + gain).clip(0, 1)
    columns = {"macro_f1": level[0], "low": _percentile(level, 2.5), "high": _percentile(level, 97.5), "gain": gain[0]}
    columns.update(gain_low=_percentile(gain, 2.5), gain_high=_percentile(gain, 97.5))
    return pd.DataFrame(columns, index=pd.Index(wanted, name="images"))


def measured(curve: Curve, label: int | None = None) -> pd.DataFrame:
    """List macro-F1, or a class's recall, by the number of images to train on; → a row each: score, low, high."""
    scores = 1 - curve.errors(label)
    sizes = curve.sizes if label is None else curve.images[:, label]
    columns = {"score": scores[0], "low": _percentile(scores, 2.5), "high": _percentile(scores, 97.5)}
    return pd.DataFrame(columns, index=pd.Index(sizes, name="images"))


def _percentile(values: np.ndarray, percent: float) -> np.ndarray:
    return np.percentile(values[1:], percent, axis=0)
