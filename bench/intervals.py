"""Measure how often 95 % intervals hold the truth: python -m bench.intervals [SETS].

Of macro-F1, of its paired difference, and of accuracy.

Test sets are drawn from a classifier whose macro-F1 is known: groups of images per class, with answers that are alike
within a group (concentration 0.5) or nearly independent (50). The plain bootstrap by group stands beside it. For the
difference, the classifier has a twin whose margins are a little off, as those of INT8 are; what counts is how often the
lower end promises more than is true, as the verdict rests on it: 2.5 % of sets are allowed.
"""

import sys

import numpy as np
from tqdm import trange

from utils.intervals import (
    macro_f1_difference_interval,
    macro_f1_interval,
    resample_weights,
    share_interval,
    wilson_interval,
)
from utils.metrics import macro_f1, weighted_macro_f1

CLASSES = 3
ERRORS = np.array([[0, 0.7, 0.3], [0.8, 0, 0.2], [0.5, 0.5, 0]])  # where the wrong answers go
DESIGNS = {  # groups of each class, images of each group
    "2, 3, 1 groups of 8": ((2, 3, 1), 8),
    "4, 4, 2 groups of 8": ((4, 4, 2), 8),
    "16, 16, 10 groups of 8": ((16, 16, 10), 8),
    "30, 30, 10 single images": ((30, 30, 10), 1),
}
CLASSIFIERS = ((0.6, 0.5), (0.85, 0.5), (0.97, 0.5), (0.85, 50))  # accuracy, concentration
PAIRED_DESIGNS = (((18, 18, 7), 7), ((127, 127, 50), 1), ((88, 88, 88), 1))
TWINS = ((0.0, 0.01), (0.0, 0.05), (0.0, 0.2), (0.9, 0.05), (0.9, 0.2))  # likeness within a group, noise


def draw(rates: np.ndarray, design: tuple, concentration: float, generator: np.random.Generator) -> tuple:
    """Draw labels, predictions and groups of one test set."""
    groups_per_class, size = design
    labels = np.repeat(np.arange(CLASSES), groups_per_class)
    answers = [
        generator.choice(CLASSES, size, p=generator.dirichlet(rates[label] * concentration + 1e-9)) for label in labels
    ]
    groups = np.repeat(np.arange(len(labels)), size)
    return np.repeat(labels, size), np.concatenate(answers), groups


def plain_bootstrap(labels: np.ndarray, predictions: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the percentiles alone."""
    scores = weighted_macro_f1(labels, predictions, CLASSES, resample_weights(labels, groups))
    return np.percentile(scores, [2.5, 97.5])


def plain_paired_bootstrap(labels: np.ndarray, first: np.ndarray, second: np.ndarray, groups: np.ndarray) -> float:
    """Return the lower percentile of the difference."""
    weights = resample_weights(labels, groups)
    before, after = (weighted_macro_f1(labels, answers, CLASSES, weights) for answers in (first, second))
    return np.percentile(after - before, 2.5)


def twins(groups: tuple, size: int, alike: float, noise: float, generator: np.random.Generator) -> tuple:
    """Draw labels, two models' answers, and groups; margins and noise share the part `alike` within a group."""
    labels = np.repeat(np.arange(CLASSES), np.array(groups) * size)
    group = np.arange(len(labels)) // size

    def normal() -> np.ndarray:
        shared = generator.normal(size=group[-1] + 1)[group]
        return np.sqrt(alike) * shared + np.sqrt(1 - alike) * generator.normal(size=len(labels))

    margin, shift = 2 + normal(), noise * (normal() - 0.5)
    rival = (labels + generator.integers(1, CLASSES, len(labels))) % CLASSES
    return labels, np.where(margin > 0, labels, rival), np.where(margin + shift > 0, labels, rival), group


def true_macro_f1(rates: np.ndarray, design: tuple) -> float:
    """Compute macro-F1 of expected counts: `rates` (C, C) of answers per true class, as many images as `design` has."""
    counts = rates * np.array(design[0])[:, None]
    return float((2 * np.diag(counts) / (counts.sum(axis=0) + counts.sum(axis=1))).mean())


def single(sets: int) -> None:
    """Print coverage and mean width of the interval of macro-F1, and of the plain bootstrap."""
    print(f"{'':26}{'accuracy':>9}{'alike':>7}{'plain bootstrap':>24}{'macro_f1_interval':>24}")
    for name, design in DESIGNS.items():
        for accuracy, concentration in CLASSIFIERS:
            rates = accuracy * np.eye(CLASSES) + (1 - accuracy) * ERRORS
            truth = true_macro_f1(rates, design)
            generator = np.random.default_rng(0)
            found = []
            for _ in trange(sets, leave=False):
                labels, predictions, groups = draw(rates, design, concentration, generator)
                ours = macro_f1_interval(labels, predictions, CLASSES, groups)
                found.append([plain_bootstrap(labels, predictions, groups), ours])
            low, high = np.moveaxis(np.array(found), -1, 0)
            covered, width = ((low <= truth) & (truth <= high)).mean(axis=0), (high - low).mean(axis=0)
            columns = "".join(f"{c:13.1%}, width{w:5.2f}" for c, w in zip(covered, width, strict=True))
            print(f"{name:26}{accuracy:9.2f}{'yes' if concentration < 1 else 'no':>7}{columns}", flush=True)


def paired(sets: int) -> None:
    """Print how often each lower end of the paired difference is above the truth."""
    print(f"\n{'':26}{'alike':>7}{'flips':>7}{'true loss':>11}{'bootstrap':>11}{'macro_f1_difference_interval':>30}")
    for groups, size in PAIRED_DESIGNS:
        for alike, noise in TWINS:
            if size == 1 and alike:
                continue
            generator = np.random.default_rng(0)
            labels, first, second, _ = twins(np.array(groups) * 1000 // size, size, alike, noise, generator)
            truth = macro_f1(labels, second, CLASSES) - macro_f1(labels, first, CLASSES)
            above, flips = [], 0
            for _ in trange(sets, leave=False):
                labels, first, second, group = twins(groups, size, alike, noise, generator)
                flips += (first != second).sum() / sets
                ours = macro_f1_difference_interval(labels, first, second, CLASSES, group)[0]
                above.append([plain_paired_bootstrap(labels, first, second, group), ours])
            plain, ours = (np.array(above) > truth).mean(axis=0)
            name = f"{', '.join(map(str, groups))} groups of {size}"
            print(f"{name:26}{alike:7.1f}{flips:7.1f}{-truth:11.4f}{plain:11.1%}{ours:30.1%}", flush=True)


def shares(sets: int) -> None:
    """Print coverage of the interval of accuracy, beside Wilson's, which takes all images for independent."""
    print(f"\n{'':26}{'accuracy':>9}{'alike':>7}{'Wilson':>10}{'share_interval':>16}")
    for name, design in DESIGNS.items():
        for accuracy, concentration in CLASSIFIERS:
            rates = accuracy * np.eye(CLASSES) + (1 - accuracy) * ERRORS
            generator = np.random.default_rng(0)
            covered = []
            for _ in range(sets):
                labels, predictions, groups = draw(rates, design, concentration, generator)
                hits = predictions == labels
                found = np.array([wilson_interval(hits.sum(), len(hits)), share_interval(hits, groups)])
                covered.append((found[:, 0] <= accuracy) & (accuracy <= found[:, 1]))
            plain, ours = np.mean(covered, axis=0)
            print(f"{name:26}{accuracy:9.2f}{'yes' if concentration < 1 else 'no':>7}{plain:10.1%}{ours:16.1%}")


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    single(number)
    paired(number)
    shares(number)
