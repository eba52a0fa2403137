"""Table of images → groups → train, valid and test, and the manifest that later notebooks hold on to."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics.cluster import pair_confusion_matrix

from utils.config import EMBEDDED, SEED, InputError, listing, relative, require
from utils.files import sha256, whole_file
from utils.layout import find_images, path_in

PARTS = {"train": 0.70, "valid": 0.15, "test": 0.15}
REFUSED = "refused"
FRUIT = r"(apple|cherry|tomato)_\d+"  # as the embedded images of one fruit begin
MANIFEST = ["path", "class", "group", "sha256", "split"]


def minority_classes(labels: pd.Series, given: list[str] | None = None) -> list[str]:
    """Name the classes that have fewer than half as many images as the largest one, or those that are `given`."""
    counts = labels.value_counts()
    if given:
        require(set(given) <= set(counts.index), f"MINORITY {given}: there are only {listing(sorted(counts.index))}")
        return list(given)
    return sorted(counts.index[counts < counts.max() / 2])


def group_pattern(pattern: str | None, folder: Path) -> str:
    """Return how the names of images of one object begin: as given, or, for None, as in the embedded fruit alone."""
    of_folder = FRUIT if folder.resolve() == EMBEDDED else ""
    return of_folder if pattern is None else pattern


def name_groups(index: pd.DataFrame, pattern: str) -> pd.Series:
    """Name each image's group by its class and what `pattern` matches at the start of its file's name, if anything."""
    try:
        found = [re.match(pattern, Path(path).name) for path in index["path"]]
    except re.error as error:
        raise InputError(f"GROUPS {pattern!r} is no regular expression: {error}") from None
    rows = zip(index["path"], index["class"], found, strict=True)
    return pd.Series(
        [f"{label}/{start[0]}" if start and start[0] else path for path, label, start in rows], index.index
    )


def series_classes(index: pd.DataFrame) -> list[str]:
    """Name the classes that have fewer than three groups, so that a part of the split cannot have one of its own."""
    groups = index.groupby("class")["group"].nunique()
    return list(groups.index[groups < len(PARTS)])


def separable_groups(index: pd.DataFrame) -> pd.Series:
    """Return each image's group; a class that is one series is cut into ten blocks of frames, which leak a little."""
    groups = index["group"].copy()
    for name in series_classes(index):
        paths = _frames(index, name)
        groups[paths.index] = [f"{name}/frames {10 * rank // len(paths)}" for rank in range(len(paths))]
    return groups


def make_split(index: pd.DataFrame, wanted: str | None = None, seed: int = SEED) -> pd.Series:
    """Assign every image to train, valid or test, by the given test part if there is one and ours is not `wanted`.

    Near-copies of a given test part are REFUSED, but for a class that is one series, of which nothing would remain; the
    others are divided as in `split_index`. Raises InputError when a wanted part is missing or a class keeps too few.
    """
    test = index["part"] == "test"
    require(wanted != "given" or test.any(), "SPLIT is 'given', but the data folder has no part that is called test")
    if wanted == "ours" or not test.any():
        return split_index(index, seed)
    copies = index["group"].isin(index.loc[test, "group"]) & ~test
    others, left = (~test).groupby(index["class"]).sum(), (~test & ~copies).groupby(index["class"]).sum()
    series = left.index[(left < 3) & (others >= 3)].intersection(series_classes(index))
    copies &= ~index["class"].isin(series)
    short = left.index[left < 3].difference(series)
    few = f"{listing(short)}: fewer than 3 images remain beside the given test part and its near-copies"
    require(short.empty, f"{few}. Add images, or take -p SPLIT=ours, which splits anew")
    split = pd.Series("test", index.index).mask(copies, REFUSED)
    rest = index[~test & ~copies]
    split[rest.index] = split_index(rest, seed).replace("test", "train")
    return split


def split_index(index: pd.DataFrame, seed: int = SEED) -> pd.Series:
    """Assign every image to train, valid or test, 70:15:15 within each class, groups kept whole.

    Each class gives one random group to test and one to valid, not the one with most of its images; every further group
    goes where most images of the class are missing. A class that is one series leaks: frames in a row become test, and
    valid lies on both sides of them. Raises InputError when a class has fewer than three images.
    """
    counts = index["class"].value_counts()
    small = listing(f"{name} ({count})" for name, count in counts[counts < 3].items())
    require(not small, f"each class needs 3 images or more; too few in {small}: add images or remove the folder")
    series = series_classes(index)
    part_of_group, generator = {}, np.random.default_rng(seed)
    missing_of_all = {part: share * len(index) for part, share in PARTS.items()}
    split = pd.Series("", index=index.index, name="split")
    for name in counts.index[::-1]:
        paths = _frames(index, name)
        if name in series:
            split[paths.index] = _split_series(len(paths), generator)
        else:
            groups = index.loc[paths.index.sort_values(), "group"]
            _assign_groups(groups, part_of_group, missing_of_all, generator)
            split[groups.index] = groups.map(part_of_group)
    return split


def _frames(index: pd.DataFrame, name: str) -> pd.Series:
    """List a class's paths as a person would number the files: 2 before 10, whatever folders they are in."""

    def numbered(path: str) -> list[str | int]:
        parts = re.split(r"([0-9]+)", f"{Path(path).name}/{path}")
        return [int(part) if position % 2 else part for position, part in enumerate(parts)]

    paths = index.loc[index["class"] == name, "path"]
    return paths.loc[sorted(paths.index, key=lambda row: numbered(paths[row]))]


def _split_series(total: int, generator: np.random.Generator) -> np.ndarray:
    """Cut frames 70:15:15 on a circle, as a turntable's last frame resembles its first: train, gap, test, gap."""
    test, valid = max(1, round(PARTS["test"] * total)), max(1, round(PARTS["valid"] * total))
    parts = ["valid"] * (valid - valid // 2) + ["test"] * test + ["valid"] * (valid // 2)
    parts += ["train"] * (total - len(parts))
    return np.roll(parts, generator.integers(total))


def _assign_groups(
    groups: pd.Series, part_of_group: dict[str, str], missing_of_all: dict[str, float], generator: np.random.Generator
) -> None:
    """Extend `part_of_group` by one class's groups; a group that another class has assigned stays where it is."""
    sizes = groups.value_counts(sort=False)
    missing = {part: share * len(groups) for part, share in PARTS.items()}
    without = ["test", "valid"]  # parts that get a group of this class before any gets a second one
    known = [group for group in sizes.index if group in part_of_group]
    new = generator.permutation(sorted(set(sizes.index) - set(known)))
    new = sorted(new, key=lambda group: sizes[group] > len(groups) / 2)  # what most images show is to be trained on
    for group in [*known, *new]:
        if group not in part_of_group:
            emptiest = max(missing, key=lambda part: (round(missing[part], 6), missing_of_all[part]))
            part_of_group[group] = without.pop() if without else emptiest
        missing[part_of_group[group]] -= sizes[group]
        missing_of_all[part_of_group[group]] -= sizes[group]


def count_leaks(groups: pd.Series, split: pd.Series) -> int:
    """Count the pairs of images of one group that lie in different parts of the split."""
    pairs = pair_confusion_matrix(groups, split)
    return int(pairs[1, 0]) // 2  # together by group, apart by part; every pair is counted twice


def summary(index: pd.DataFrame, seed: int = SEED) -> dict:
    """Say what the report tells of images, groups and split, and of the leaks of a split of single images."""
    given = {"given_split": _given_split(index)} if "part" in index and index["part"].any() else {}
    index = index[index["split"] != REFUSED]
    return given | {
        "images": len(index),
        "classes": index["class"].value_counts().sort_index().to_dict(),
        "minority": minority_classes(index["class"]),
        "groups": index["group"].nunique(),
        "series": series_classes(index),
        "split": index["split"].value_counts().to_dict(),
        "leaks": count_leaks(index["group"], index["split"]),
        "random_split_leaks": count_leaks(index["group"], split_index(index.assign(group=index["path"]), seed)),
    }


def _given_split(index: pd.DataFrame) -> dict:
    """Say how many images each given part has, how many near-duplicate pairs they part, and what was left out."""
    out, test = index[index["split"] == REFUSED], index[index["split"] == "test"]
    parts, pairs = index["part"].value_counts().to_dict(), count_leaks(index["group"], index["part"])
    kept = index.drop(out.index)
    note = f"the given split parts {pairs} near-duplicate pairs, this one {count_leaks(kept['group'], kept['split'])}"
    if len(out):
        copied = test["group"].isin(out["group"]).sum()
        of_parts = f"{len(out)} images of {' and '.join(out['part'].unique())}"
        note += f". {of_parts} are near-copies of {copied} of test: left out ({listing(out['path'], 20)})"
    if lacking := sorted(set(index["class"]) - set(test["class"])):
        note += f". The test part has no image of {listing(lacking)}, so its macro-F1 counts them as never found"
    return {"parts": parts, "near_duplicates": pairs, "left_out": len(out), "note": note}


def save_index(path: Path, index: pd.DataFrame, refused: pd.DataFrame) -> None:
    """Write the manifest: every image with class, group, sha256 and part; refused files are listed as such."""
    rows = pd.concat([index, refused.assign(split=REFUSED)])
    with whole_file(path) as temporary:
        rows[MANIFEST].to_csv(temporary, index=False, lineterminator="\n")


def load_index(path: Path, folder: Path) -> pd.DataFrame:
    """Read the manifest; InputError names what has changed in `folder` since, or corrections that EDA has not seen."""
    require(path.exists(), f"{relative(path)} does not exist: run EDA.ipynb first, it splits the data")
    require(folder.is_dir(), f"the photos are no longer in {relative(folder)}: say where they are, by --data DIR")
    corrections = path.with_name("corrections.csv")
    seen = not corrections.exists() or corrections.stat().st_mtime <= path.stat().st_mtime
    require(seen, f"{relative(corrections)} has changed since EDA.ipynb split the data: run EDA.ipynb again")
    try:  # all is text: a class may be called 01
        index = pd.read_csv(path, keep_default_na=False, dtype=str, usecols=MANIFEST)
    except ValueError as error:
        raise InputError(f"{relative(path)} cannot be read ({error}): run EDA.ipynb again") from None
    changes = _list_changes(folder, index)
    shown = "; ".join(changes[:20]) + f"; and {len(changes) - 20} more" * (len(changes) > 20)
    require(not changes, f"{relative(folder)} has changed since EDA.ipynb split it ({shown}): run EDA.ipynb again")
    return index[index["split"] != REFUSED].reset_index(drop=True)


def sample_test_part(index: pd.DataFrame, count: int) -> pd.DataFrame:
    """Choose `count` images of the test part, of one class after the other; all where there are fewer."""
    test = index[index["split"] == "test"]
    return test.loc[test.groupby("class").cumcount().sort_values(kind="stable").index[:count]]


def _list_changes(folder: Path, index: pd.DataFrame) -> list[str]:
    on_disk = {path_in(folder, file): file for file in find_images(folder)[0]}
    digests = dict(zip(index["path"], index["sha256"], strict=True))  # none of what was never there
    changes = [f"missing: {name}" for name in sorted(set(filter(digests.get, digests)) - set(on_disk))]
    changes += [f"new: {name}" for name in sorted(set(on_disk) - set(digests))]
    both = [name for name in digests if name in on_disk]
    return changes + [f"changed: {name}" for name in both if sha256(on_disk[name]) != digests[name]]
