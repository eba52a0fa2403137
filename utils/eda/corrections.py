"""What a person decided about images: a file beside the results, as the data folder stays untouched."""

from pathlib import Path

import pandas as pd

from utils.config import InputError, listing, relative
from utils.eda.spreadsheet import COLUMNS, plain, read_list, write_list
from utils.split import PARTS

DROP = "drop"


def apply_corrections(
    run: Path, index: pd.DataFrame, refused: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Give images the class that a person wrote into the run's ``corrections.csv``, and list dropped ones as refused.

    A line without an action decides nothing; one with the class that the image has says that it is right. What was
    filled in in ``suspects.csv`` moves to ``corrections.csv``. Returns both tables of `scan_folder`, corrected, and how
    many images were `relabelled` and `dropped`. Raises InputError naming all lines whose image is gone or has changed,
    whose action is no class, or that contradict each other, and the classes left with fewer than three images.
    """
    decided = read_decisions(run)
    files = pd.concat([index, refused])
    digests = dict(zip(files["path"].map(plain), files["sha256"], strict=True))
    classes = {plain(name).casefold(): name for name in sorted(index["class"].unique())}
    if problems := _list_problems(decided, digests, classes):
        raise InputError(
            f"{relative(run / 'corrections.csv')} does not fit the images: {'; '.join(problems)}. Mend these lines or "
            "take them out (they may still stand in suspects.csv), and run EDA.ipynb again"
        )
    decided = decided.drop_duplicates("path").set_index("path").reindex(index["path"].map(plain)).set_axis(index.index)
    dropped = decided["action"].str.casefold() == DROP
    corrected = index.copy()
    corrected["class"] = decided["action"].str.casefold().map(classes).fillna(index["class"])
    _stop_at_small_classes(run / "corrections.csv", index["class"], corrected["class"][~dropped])
    _move_decisions(run)
    reasons = ("dropped by hand: " + decided["note"]).str.removesuffix(": ")
    refused = pd.concat([refused, index.assign(reason=reasons).loc[dropped, refused.columns]])
    relabelled = (corrected["class"] != index["class"]).sum()
    counts = {"relabelled": int(relabelled), "dropped": int(dropped.sum())}
    return corrected[~dropped].reset_index(drop=True), refused.sort_values("path", ignore_index=True), counts


def read_decisions(run: Path) -> pd.DataFrame:
    """Read the lines that have an action, in ``corrections.csv`` and in ``suspects.csv``, in COLUMNS."""
    lists = [read_list(run / name)[COLUMNS] for name in ("corrections.csv", "suspects.csv")]
    decided = pd.concat(lists, ignore_index=True)
    return decided[decided["action"] != ""]


def save_decision(run: Path, image: pd.Series, action: str) -> None:
    """Write what a person decided about an image, a row of the suspects, into ``corrections.csv``; other lines stay."""
    known = read_list(run / "corrections.csv")
    line = pd.DataFrame([image[COLUMNS]]).assign(action=action)
    write_list(run / "corrections.csv", pd.concat([known[known["path"] != plain(image["path"])], line]))


def write_suspects(run: Path, suspects: pd.DataFrame) -> pd.DataFrame:
    """Write ``suspects.csv`` for a person to fill in; → the suspects in it, those that nobody has decided about."""
    decided = read_list(run / "corrections.csv")
    open_ones = suspects[~suspects["path"].map(plain).isin(decided.loc[decided["action"] != "", "path"])]
    write_list(run / "suspects.csv", open_ones[COLUMNS])
    return open_ones


def _move_decisions(run: Path) -> None:
    """Add to ``corrections.csv`` what was filled in in ``suspects.csv``, which EDA will write anew."""
    known, filled = read_list(run / "corrections.csv"), read_list(run / "suspects.csv")
    filled = filled[(filled["action"] != "") & ~filled["path"].isin(known.loc[known["action"] != "", "path"])]
    if len(filled):
        write_list(run / "corrections.csv", pd.concat([known, filled]))


def _list_problems(decided: pd.DataFrame, digests: dict[str, str], classes: dict[str, str]) -> list[str]:
    """Say what is wrong with the decisions, given the files' hashes by path and the classes' names by spelling."""
    problems = []
    for name, lines in decided.groupby("path", sort=False):
        actions = lines["action"].unique()
        unknown = [action for action in actions if action.casefold() not in {DROP, *classes}]
        problems += [
            f"{name}: {action} is neither drop nor a class ({listing(classes.values())})" for action in unknown
        ]
        if len({action.casefold() for action in actions}) > 1:
            problems.append(f"{name}: its lines contradict each other ({' and '.join(actions)})")
        if name not in digests:
            problems.append(f"{name}: there is no such image any more")
        elif (lines["sha256"] == "").any():
            problems.append(f"{name}: its sha256 is missing, copy it from split.csv")
        elif (lines["sha256"].str.lower() != digests[name]).any():
            problems.append(f"{name}: the image has changed since, look at it again")
    return problems


def _stop_at_small_classes(path: Path, before: pd.Series, after: pd.Series) -> None:
    counts = before.value_counts().sort_index()
    left = after.value_counts().reindex(counts.index, fill_value=0)
    small = left[(left < len(PARTS)) & (left < counts)].index
    if len(small):
        names = listing(f"{name} ({left[name]} of {counts[name]})" for name in small)
        raise InputError(
            f"{relative(path)} leaves too few images of {names}: each class needs {len(PARTS)} or more, to train, "
            "validate and test. Take some of its lines out, or add images"
        )
