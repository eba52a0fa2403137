"""Measure how often the 95 % interval of macro-F1 holds the true value: python -m bench.intervals [SETS].

Test sets are drawn from a classifier whose macro-F1 is known: groups of images per class, with answers that are alike
within a group (concentration 0.5) or nearly independent (50). The plain bootstrap by group stands beside it.
"""

import sys

import numpy as np
from tqdm import trange

from utils.metrics import confusion, f1_per_class, macro_f1_interval, resample_weights

CLASSES = 3
ERRORS = np.array([[0, 0.7, 0.3], [0.8, 0, 0.2], [0.5, 0.5, 0]])  # where the wrong answers go
DESIGNS = {"2, 3, 1 groups of 8": ((2, 3, 1), 8), "4, 4, 2 groups of 8": ((4, 4, 2), 8)}
DESIGNS |= {"16, 16, 10 groups of 8": ((16, 16, 10), 8), "30, 30, 10 single images": ((30, 30, 10), 1)}


def draw(rates: np.ndarray, design: tuple, concentration: float, generator: np.random.Generator) -> tuple:
    """Draw labels, predictions and groups of one test set."""
    labels = np.repeat(np.arange(CLASSES), design[0])
    answers = [
        generator.choice(CLASSES, design[1], p=generator.dirichlet(rates[label] * concentration + 1e-9))
        for label in labels
    ]
    groups = np.repeat(np.arange(len(labels)), design[1])
    return np.repeat(labels, design[1]), np.concatenate(answers), groups


def plain_bootstrap(labels: np.ndarray, predictions: np.ndarray, num_classes: int, groups: np.ndarray) -> np.ndarray:
    """Return the percentiles alone."""
    counts = confusion(labels, predictions, num_classes, resample_weights(labels, groups))
    return np.percentile(f1_per_class(counts).mean(axis=-1), [2.5, 97.5])


def main() -> None:
    """Print coverage and mean width of both intervals."""
    sets = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    print(f"{'':26}{'accuracy':>9}{'alike':>7}{'plain bootstrap':>24}{'macro_f1_interval':>24}")
    for name, design in DESIGNS.items():
        for accuracy, concentration in ((0.6, 0.5), (0.85, 0.5), (0.97, 0.5), (0.85, 50)):
            rates = accuracy * np.eye(CLASSES) + (1 - accuracy) * ERRORS
            truth = f1_per_class(rates * np.array(design[0])[:, None]).mean()
            generator = np.random.default_rng(0)
            found = []
            for _ in trange(sets, leave=False):
                labels, predictions, groups = draw(rates, design, concentration, generator)
                arguments = (labels, predictions, CLASSES, groups)
                found.append([plain_bootstrap(*arguments), macro_f1_interval(*arguments)])
            low, high = np.moveaxis(np.array(found), -1, 0)
            covered, width = ((low <= truth) & (truth <= high)).mean(axis=0), (high - low).mean(axis=0)
            columns = "".join(f"{c:13.1%}, width{w:5.2f}" for c, w in zip(covered, width, strict=True))
            print(f"{name:26}{accuracy:9.2f}{'yes' if concentration < 1 else 'no':>7}{columns}", flush=True)


if __name__ == "__main__":
    main()
