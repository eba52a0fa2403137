"""What more images would bring: the power law that extends a learning curve, and how sure that is."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd

from utils.config import SEED
from utils.train.learning_curve import DRAWS, Curve, percentile

EXPONENTS = np.linspace(-0.5, 1, 16)  # 0 is a straight line against the logarithm; below, it is still to speed up
WIDER = 3  # times the variance that a larger set should lose: bench/learning_curve.py says how often that is enough


def extend_errors(sizes: np.ndarray, errors: np.ndarray, wanted: Sequence[float]) -> np.ndarray:
    """Fit error = a + b · size^-c, b ≥ 0, to errors (B, S) by least squares; → errors (F, B, T) at the sizes `wanted`.

    Such a power law is due to Cortes et al. 1993 (Learning curves: asymptotic values and rate of convergence), see
    Hestness et al. 2017 (arXiv 1712.00409). So few sizes tell neither the exponent nor from where on it holds, so there
    is a fit for each of several exponents to the last two sizes, the last three, and so on. Exponents below 0 are for
    curves that have not come to the power law yet: with few images, they first speed up (their small-data region).
    """
    fits = []
    for exponent, first in product(EXPONENTS, range(len(sizes) - 1)):
        x, new = (_power(values, exponent) for values in (sizes[first:], np.array(wanted)))
        centered, mean = x - x.mean(), errors[:, first:].mean(axis=1)
        slope = (errors[:, first:] @ centered / max(centered @ centered, 1e-12)).clip(0)
        fits.append(mean[:, None] + slope[:, None] * (new - x.mean()))
    return np.stack(fits)


def _power(sizes: np.ndarray, exponent: float) -> np.ndarray:
    """Return what falls as size^-exponent does, whatever the exponent's sign is; its limit at 0 is -log(size)."""
    return -np.log(sizes) if abs(exponent) < 1e-9 else sizes**-exponent / exponent


def forecast(curve: Curve, wanted: Sequence[float], spread: float) -> pd.DataFrame:
    """Extend macro-F1 to the numbers of images `wanted`; → a row each: macro_f1, low, high, gain, gain_low, gain_high.

    The 95 % intervals are those of what one would measure then. They vary the images asked about, the fit, and, as
    other images to train on would give another score, that by its `spread`: a Student's t, for so few draws.
    """
    errors, generator = curve.errors(), np.random.default_rng(SEED)
    law = extend_errors(curve.sizes, errors, [curve.sizes[-1], *wanted])
    chosen = law[generator.integers(len(law), size=len(errors)), np.arange(len(errors))]
    chosen[0] = law[np.repeat(EXPONENTS > 0, len(curve.sizes) - 1), 0].mean(axis=0)  # to expect what the power law says
    gain = chosen[:, :1] - chosen[:, 1:]
    noise = spread * generator.standard_t(2 * (DRAWS - 1), size=(len(errors), 1))
    gain[1:] += noise[1:] * np.sqrt(WIDER * (1 - curve.sizes[-1] / np.array(wanted)))
    gain = np.minimum(gain, errors[:, -1:])  # no more than all can be right
    level = (1 - errors[:, -1:] + gain).clip(0, 1)
    columns = {"macro_f1": level[0], "low": percentile(level, 2.5), "high": percentile(level, 97.5), "gain": gain[0]}
    columns.update(gain_low=percentile(gain, 2.5), gain_high=percentile(gain, 97.5))
    return pd.DataFrame(columns, index=pd.Index(wanted, name="images"))
