"""The learning curve: scores of heads by the number of images that they are trained on, and what more would bring."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import boxcox

from utils.config import SEED
from utils.cross_validation import FOLDS, MANY, fit_and_predict, grouped_folds
from utils.intervals import resample_weights, unseen_spread
from utils.metrics import weighted_macro_f1
from utils.train.feature_table import FeatureTable
from utils.train.head import Head

SHARES = (1 / 8, 1 / 4, 1 / 2, 1)  # of the groups that a fold trains on
DRAWS = 3  # of these groups
RESAMPLES = 500  # of the draws, and of the images that are predicted
EXPONENTS = np.linspace(-0.5, 1, 16)  # 0 is a straight line against the logarithm; below, it is still to speed up
WIDER = 3  # times the variance that a larger set should lose: bench/learning_curve.py says how often that is enough
TRAINED = 1 - 1 / FOLDS  # of the images, in each fold
FARTHEST = 4  # times as many images, to extend a curve to


class Curve(NamedTuple):
    """What heads that were trained on parts of the groups predict of images of groups that they never saw.

    `images` (S, C) counts the images of each class that a head was trained on, from few to all, of which only the
    classes `subsampled` vary. `predictions` (S, R, N) are classes, by size and draw, of images with `labels` (N,) and
    `groups`.
    """

    images: np.ndarray
    subsampled: list[int]
    predictions: np.ndarray
    labels: np.ndarray
    groups: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Images to train on, (S,), the mean over the subsampled classes."""
        return self.images[:, self.subsampled].mean(axis=1)

    def scores(self, weights: np.ndarray) -> np.ndarray:
        """Macro-F1 by size and draw, under rows of image weights (B, N): (S, R, B)."""
        classes = self.images.shape[1]
        scores = [
            [weighted_macro_f1(self.labels, drawn, classes, weights) for drawn in row] for row in self.predictions
        ]
        return np.array(scores)

    def errors(self) -> np.ndarray:
        """1 − macro-F1 by size; as measured, then of resampled draws and images (1 + B, S).

        Images are resampled by group, and the same ones at every size.
        """
        generator, draws = np.random.default_rng(SEED), self.predictions.shape[1]
        weights = resample_weights(self.labels, self.groups, RESAMPLES)
        weights = np.concatenate([np.ones((1, len(self.labels))), weights])
        chosen = generator.multinomial(draws, np.full(draws, 1 / draws), size=RESAMPLES) / draws
        chosen = np.concatenate([np.full((1, draws), 1 / draws), chosen])  # (1 + B, R)
        return 1 - np.einsum("srb,br->bs", self.scores(weights), chosen)

    def deviation(self) -> float:
        """Estimate the standard deviation of macro-F1, at the largest size, over sets of training images.

        From draws of a quarter and of half the groups: the variance falls as sets grow, and halves of one set vary half
        as much as sets of that size that share nothing.
        """
        scores = self.scores(np.ones((1, len(self.labels))))[..., 0]
        quarter, half = scores[-3:-1].var(axis=1, ddof=1)
        return float(np.sqrt((quarter / 2 + half) / 2))


def trace_curve(table: FeatureTable, num_classes: int, shares: Sequence[float] = SHARES) -> Curve:
    """Train heads on an eighth, a quarter, half and all of the groups, in three draws.

    In five folds, groups whole. The parts are nested. Random versions of an image go where it goes, and are not
    predicted.
    """
    return _trace(table, list(range(num_classes)), num_classes, shares, DRAWS)


def subsample_class(table: FeatureTable, curve: Curve, label: int) -> Curve:
    """Trace what a single class does to the scores: half of its groups, in one draw, and all of them, as in `curve`."""
    half = _trace(table, [label], curve.images.shape[1], (1 / 2,), draws=1)
    images = np.stack([half.images[0], curve.images[-1]])
    return half._replace(images=images, predictions=np.stack([half.predictions[0], curve.predictions[-1, :1]]))


def _trace(table: FeatureTable, subsampled: list[int], num_classes: int, shares: Sequence[float], draws: int) -> Curve:
    image_of = pd.factorize(table.paths)[0]  # the first rows are the images as they are
    count = image_of.max() + 1
    labels, groups = table.labels[:count], table.groups[:count]
    folds, generator = grouped_folds(labels, groups), np.random.default_rng(SEED)
    if count >= MANY:
        folds = folds[:2]  # they are enough
    head, images, jobs = Head(table.sizes, num_classes), np.zeros((len(shares), num_classes)), defaultdict(list)
    for (train, test), draw in product(folds, range(draws)):
        places = np.ones(count)  # of images that no head is trained on
        places[train] = _nested_places(labels[train], groups[train], generator)
        places[train] *= np.isin(labels[train], subsampled)  # 0: always there
        for size, share in enumerate(shares):
            images[size] += np.bincount(labels[places < share], minlength=num_classes) / (len(folds) * draws)
            if share < 1 or draw == 0:  # all groups are the same ones in every draw
                jobs[size, draw].append((head, np.flatnonzero((places < share)[image_of]), test))
    found = fit_and_predict(table.features, table.labels, table.groups, jobs, "learning curve")
    held_out = np.sort(np.concatenate([test for _, test in folds]))
    predicted = {key: probabilities[held_out].argmax(axis=1) for key, probabilities in found.items()}
    of_draws = [
        [predicted.get((size, draw), predicted[size, 0]) for draw in range(draws)] for size in range(len(shares))
    ]
    return Curve(images, subsampled, np.array(of_draws), labels[held_out], groups[held_out])


def _nested_places(labels: np.ndarray, groups: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Put the groups of each class in a random order; → the place (N,) of each image, from 0 to below 1."""
    places = np.zeros(len(labels))
    for label in np.unique(labels):
        names, group_of = np.unique(groups[labels == label], return_inverse=True)
        places[labels == label] = (generator.permutation(len(names)) / len(names))[group_of]
    return places


def measured(curve: Curve) -> pd.DataFrame:
    """List macro-F1 by the number of images to train on; → a row each: images, score, low, high."""
    scores = 1 - curve.errors()
    low, high = interval(scores)
    return pd.DataFrame({"images": curve.sizes, "score": scores[0], "low": low, "high": high})


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % intervals from resampled values (1 + B, S), of which the first row is what was measured; → two of (S,)."""
    return tuple(np.percentile(values[1:], [2.5, 97.5], axis=0))


def extend_errors(sizes: np.ndarray, errors: np.ndarray, wanted: Sequence[float]) -> np.ndarray:
    """Fit error = a + b · size^-c, b ≥ 0, to errors (B, S) by least squares; → errors (F, B, T) at the sizes `wanted`.

    Such a power law is due to Cortes et al. 1993 (Learning curves: asymptotic values and rate of convergence), see
    Hestness et al. 2017 (arXiv 1712.00409). So few sizes fix neither the exponent nor from where on it holds, so there
    is a fit for each of several exponents to the last two sizes, the last three, and so on. Exponents below 0 are for
    curves that have not come to the power law yet: with few images, they first speed up (their small-data region).
    """
    fits = []
    for exponent, first in product(EXPONENTS, range(len(sizes) - 1)):
        x, new = -boxcox(sizes[first:], -exponent), -boxcox(wanted, -exponent)  # fall as size^-c does, up to a constant
        centered, mean = x - x.mean(), errors[:, first:].mean(axis=1)
        slope = (errors[:, first:] @ centered / max(centered @ centered, 1e-12)).clip(0)
        fits.append((mean[:, None] + slope[:, None] * (new - x.mean())).clip(0))  # no error is below 0
    return np.stack(fits)


def forecast(curve: Curve, wanted: Sequence[float], deviation: float) -> pd.DataFrame:
    """Extend macro-F1 to the numbers of images `wanted`.

    → a row each: images, macro_f1, low, high, gain, gain_low, gain_high. The 95 % intervals are those of what one would
    measure then. They vary the images predicted, the fit, and, as other images to train on would give another score,
    that by its standard `deviation`: a Student's t, for few draws.
    """
    errors, generator = curve.errors(), np.random.default_rng(SEED)
    law = extend_errors(curve.sizes, errors, [curve.sizes[-1], *wanted])
    chosen = law[generator.integers(len(law), size=len(errors)), np.arange(len(errors))]
    expected = np.repeat(EXPONENTS > 0, len(curve.sizes) - 1)  # the fits that follow the power law
    chosen[0] = law[expected, 0].mean(axis=0)
    gain = chosen[:, :1] - chosen[:, 1:]
    noise = deviation * generator.standard_t(2 * (DRAWS - 1), size=(len(errors), 1))
    gain[1:] += noise[1:] * np.sqrt(WIDER * (1 - curve.sizes[-1] / np.array(wanted)))
    gain = np.minimum(gain, errors[:, -1:])  # no more than all can be right
    level = (1 - errors[:, -1:] + gain).clip(0, 1)
    table = pd.DataFrame({"images": wanted, "macro_f1": level[0]})
    table["low"], table["high"] = interval(level)
    table["gain"] = gain[0]
    table["gain_low"], table["gain_high"] = interval(gain)
    return table


def measure(table: FeatureTable, classes: Sequence[str], more: int) -> dict:
    """Trace the curves of all `classes` and of the one with fewest images; → what `report_curves` makes of them."""
    curve = trace_curve(table, len(classes))
    smallest = int(np.bincount(table.labels[table.unaugmented]).argmin())
    return report_curves(curve, subsample_class(table, curve, smallest), classes, more)


def report_curves(curve: Curve, of_smallest: Curve, classes: Sequence[str], more: int) -> dict:
    """Gather what the report holds: the curve, its extension, and what `more` images of each or one class would gain.

    `curve` thins all classes, `of_smallest` one. Of new images, heads are trained on the same share as of the others.
    """
    deviation, doubled = curve.deviation(), round(curve.sizes[-1] / TRAINED)
    extended = forecast(curve, curve.sizes[-1] * np.array([1, 2, FARTHEST]), deviation)
    (smallest,) = of_smallest.subsampled
    return {
        "macro_f1": measured(curve).to_dict("records"),
        "extended": extended.to_dict("records"),
        "smallest": classes[smallest],
        "gain_smallest": _gain(of_smallest, more, deviation / np.sqrt(len(classes))),  # by one class alone
        "gain_each": _gain(curve, more, deviation),
        "gain_doubled": _gain(curve, doubled, deviation),
    }


def _gain(curve: Curve, more: int, deviation: float) -> dict[str, float]:
    """Forecast the gain of `more` images of each class that the curve thins, as far as it may be extended.

    Of classes that are all right or all wrong, neither draws nor resamples vary: see `unseen_spread`.
    """
    more = min(more, int((FARTHEST - 1) * curve.sizes[-1] / TRAINED))
    row = forecast(curve, [curve.sizes[-1] + more * TRAINED], deviation).iloc[0]
    varied = np.isin(curve.labels, curve.subsampled)
    seen = curve.labels[varied], curve.predictions[-1, 0, varied], curve.images.shape[1], curve.groups[varied]
    below, above = np.hypot([row["gain"] - row["gain_low"], row["gain_high"] - row["gain"]], unseen_spread(*seen))
    most = 1 - row["macro_f1"] + row["gain"]  # no more than all can be right
    return {"images": more, "gain": row["gain"], "low": row["gain"] - below, "high": min(row["gain"] + above, most)}
