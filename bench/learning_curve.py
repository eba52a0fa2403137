"""Does half of the data foretell what all reach? python -m bench.learning_curve [--data DIR --name RUN --arch A].

Needs the split.csv that EDA.ipynb makes. In each of five draws the groups of every class are dealt out in two halves.
The learning curve of a half says what twice as many images would reach, and gain; heads trained on all groups, out of
fold, say what they do reach on all images, and gain on those of the half. Then the same on sets made up, of four
classes, one of them rare: the numbers are how far the classes lie apart, and the seed. How to forecast was decided on
other seeds and on the embedded images with efficientnet_lite0.
"""

import numpy as np
import pandas as pd

from bench.folds import read_images
from utils.config import SEED
from utils.metrics import macro_f1
from utils.train.feature_table import FeatureTable
from utils.train.learning_curve import forecast, trace_curve

DRAWS = 5
COUNTS = (100, 100, 100, 40)  # images of the classes made up
FEATURES, IN_GROUP = 80, 4
MADE_UP = ((0.5, 31), (0.4, 32), (0.3, 33))


def make_up(apart: float, seed: int) -> FeatureTable:
    """Draw classes whose images come in groups of four that resemble each other."""
    generator, labels = np.random.default_rng(seed), np.repeat(np.arange(len(COUNTS)), COUNTS)
    groups = np.arange(len(labels)) // IN_GROUP
    centers = apart * generator.normal(size=(len(COUNTS), FEATURES))
    objects = 1.2 * generator.normal(size=(groups[-1] + 1, FEATURES)) * np.geomspace(0.3, 2, FEATURES)
    features = centers[labels] + objects[groups] + generator.normal(size=(len(labels), FEATURES))
    return FeatureTable((features + 5).astype(np.float32), np.arange(len(labels)).astype(str), labels, groups)


def halve(labels: np.ndarray, groups: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """Deal out the groups of every class; → the images (N,) of each half, as masks."""
    halves = np.zeros((2, len(labels)), dtype=bool)
    for label in np.unique(labels):
        names = generator.permutation(np.unique(groups[labels == label]))
        each = len(names) // 2
        for half, part in zip(halves, (names[:each], names[each : 2 * each]), strict=True):
            half |= (labels == label) & np.isin(groups, part)
    return list(halves)


def foretell(table: FeatureTable) -> pd.DataFrame:
    """Foretell from halves; → a row each: what was expected, what came, and whether that is within the interval."""
    num_classes, generator, rows = table.labels.max() + 1, np.random.default_rng(SEED), []
    answers = trace_curve(table, num_classes, shares=(1,)).predictions[0, 0]
    reached = macro_f1(table.labels, answers, num_classes)
    for half in [half for _ in range(DRAWS) for half in halve(table.labels, table.groups, generator)]:
        curve = trace_curve(table.take(half), num_classes)
        expected = forecast(curve, [2 * curve.sizes[-1]], curve.deviation()).iloc[0]
        before = macro_f1(curve.labels, curve.predictions[-1, 0], num_classes)
        gained = macro_f1(curve.labels, answers[half], num_classes) - before
        row = {"before": before, "foretold": expected["macro_f1"], "reached": reached}
        row["holds"] = expected["low"] <= reached <= expected["high"]
        row["width"] = expected["high"] - expected["low"]
        row.update(gain_foretold=expected["gain"], gained=gained)
        row["gain_holds"] = expected["gain_low"] <= gained <= expected["gain_high"]
        rows.append(row | {"gain_width": expected["gain_high"] - expected["gain_low"]})
    return pd.DataFrame(rows)


def main() -> None:
    """Print a row per set of images: means over halves."""
    caption, images = read_images(__doc__)
    paths = images.index["path"].to_numpy()
    sets = {caption: FeatureTable(images.features, paths, images.labels, images.groups, images.sizes)}
    sets.update({f"made up {apart} {seed}": make_up(apart, seed) for apart, seed in MADE_UP})
    print(pd.DataFrame({name: foretell(table).mean() for name, table in sets.items()}).T.round(3).to_string())


if __name__ == "__main__":
    main()
