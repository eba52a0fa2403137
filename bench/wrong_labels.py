"""Do the suspects of EDA hold the wrong labels? python -m bench.wrong_labels [--data DIR --name RUN --arch A].

Twenty images, drawn at random, get the label of another class, five times. Printed for each draw: how many of them are
among the first 30 suspects, and macro-F1 out of fold, against the labels as they are then, before and after a person
has given these 30 the right class. What was mislabelled before counts as right.
"""

import numpy as np
import pandas as pd

from bench.options import Options, parse_options
from utils.cross_validation import LINEAR, out_of_fold
from utils.eda import corrections, duplicates, networks, probes
from utils.images import read_pictures, scan_folder
from utils.intervals import repeated_score
from utils.split import separable_groups

DRAWS, WRONG, SHOWN = 5, 20, 30


def look_through(
    given: Options, index: pd.DataFrame, pictures: np.ndarray, features: np.ndarray
) -> tuple[pd.Index, dict]:
    """Go EDA's way from the labels to the suspects; → the rows of these, and macro-F1 out of fold."""
    groups = duplicates.group_images(given.data, index, pictures, "", given.run / "features")
    index = index.assign(group=groups.names)
    labels, separable = index["class"].factorize(sort=True)[0], separable_groups(index).factorize()[0]
    probabilities = out_of_fold(LINEAR, features, labels, separable)
    suspects = corrections.list_suspects(index, groups.across, probabilities.mean(axis=0), features)
    return suspects.index, repeated_score(probabilities, labels, separable)


def main() -> None:
    """Print a row per draw."""
    given = parse_options(__doc__)
    index, _ = scan_folder(given.data)
    right, classes = index["class"].to_numpy(), sorted(index["class"].unique())
    features = probes.frozen_features(*networks.load(given.arch, given.data, index), given.run / "features")
    pictures = read_pictures(given.data, index)
    for draw in range(DRAWS):
        generator, labels = np.random.default_rng(draw), right.copy()
        wrong = generator.choice(len(index), WRONG, replace=False)
        for image in wrong:
            labels[image] = generator.choice([name for name in classes if name != right[image]])
        suspects, before = look_through(given, index.assign(**{"class": labels}), pictures, features)
        first = suspects[:SHOWN]
        labels[first] = right[first]
        _, after = look_through(given, index.assign(**{"class": labels}), pictures, features)
        found = len(np.intersect1d(first, wrong))
        print(f"{found} of {WRONG} wrong labels among the first {len(first)} of {len(suspects)} suspects; ", end="")
        print(f"macro-F1 {before['score']:.3f} before, {after['score']:.3f} after", flush=True)


if __name__ == "__main__":
    main()
