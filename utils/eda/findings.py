"""What EDA finds, in sentences that depend on it."""

from collections.abc import Sequence

import pandas as pd

from utils.config import listing
from utils.split import minority_classes, series_classes


def describe_files(images: int, classes: int, refused: int, skipped: dict[str, int]) -> str:
    """Say how many files there are of each kind; `skipped` counts by extension those that are no images."""
    sentence = f"**{images} images in {classes} classes; {refused} files refused.**"
    if not skipped:
        return sentence
    by_suffix = listing(f"{suffix} {count}" for suffix, count in skipped.items())
    return f"{sentence} {sum(skipped.values())} more were skipped, as no images: {by_suffix}."


def describe_leaks(leaks: int, random_leaks: int, series: Sequence[str]) -> str:
    """Say how many pairs of images of one group the split parts, and which classes, each a `series`, it had to cut."""
    sentence = f"Pairs of images of one group in different parts: **{leaks}** here, {random_leaks} in a random split."
    if not series:
        return sentence
    return (
        f"{sentence} **{listing(series)}: fewer than three groups. All images may show one object, which is trained on "
        "and tested: the test score says nothing about another object.**"
    )


def describe_pairs(pairs: pd.DataFrame) -> str:
    """Say what found the pairs of images that look alike; `pairs` has their distances by `colors` and by `features`."""
    colors, features = pairs["colors"] < 1, pairs["features"] < 1
    return (
        f"Pairs of images that look alike: **{len(pairs)}**; {(colors & ~features).sum()} by colors and light alone, "
        f"{(features & ~colors).sum()} by features alone (mirrored, cropped or turned copies, most often), "
        f"{(colors & features).sum()} by both, {(~colors & ~features).sum()} through others of their group."
    )


def describe_shortcuts(shortcuts: Sequence[str]) -> str:
    """Say whether the classes can be told apart by what is not the object."""
    if not shortcuts:
        return "None of these tells the classes apart: no shortcut of these kinds was found."
    return (
        f"**Warning: one of these alone tells the classes apart far better than chance: {listing(shortcuts)}.** "
        "That is no fault where the object itself touches the border or differs in color. It is one where only the "
        "background or the camera differs. Look at the images."
    )


def report_data(index: pd.DataFrame, refused: pd.DataFrame, suspects: pd.DataFrame) -> dict:
    """Shape for the report what the tables say: images, classes, groups, split, files refused, images to look at."""
    return {
        "images": len(index),
        "classes": index["class"].value_counts().sort_index().to_dict(),
        "minority": minority_classes(index["class"]),
        "refused": refused[["path", "reason"]].to_dict("records"),
        "groups": index["group"].nunique(),
        "series": series_classes(index),
        "split": index["split"].value_counts().to_dict(),
        "suspects": list(suspects.loc[suspects["note"] != "outlier", "path"]),
    }
