"""Images that a person should look at, in one list, with the reason."""

import numpy as np
import pandas as pd

from utils.eda.probes import label_suspects, outliers

OUTLIERS = 6


def list_suspects(
    index: pd.DataFrame, twins: list[tuple[int, int]], probability: np.ndarray, features: np.ndarray
) -> pd.DataFrame:
    """List the images to look at, the surest first: copies under two labels, label suspects, outliers.

    `twins` are the positions of copies, probability (N, C) is out of fold, features (N, D) are those of the images.
    Returns their rows of the index, with an empty `action` and a `note` that says why.
    """
    classes, labels = np.unique(index["class"], return_inverse=True)
    names, paths, pixels = (index[column].to_numpy() for column in ("class", "path", "pixels"))
    notes: dict[int, list[str]] = {}
    for pair in twins:
        for image, other in (pair, pair[::-1]):
            kind = "exact" if pixels[image] == pixels[other] else "near"
            notes.setdefault(image, []).append(f"{kind} copy of {paths[other]} under {names[other]}")
    suspects, taken_for = label_suspects(probability, labels)
    for image, other in zip(suspects, taken_for, strict=True):
        notes.setdefault(image, []).append(f"looks like {classes[other]} ({probability[image, other]:.2f})")
    for image in outliers(features)[:OUTLIERS]:
        notes.setdefault(image, []).append("outlier")
    reasons = ["; ".join(notes[image][:3]) for image in notes]
    return index.iloc[list(notes)].assign(action="", note=reasons)
