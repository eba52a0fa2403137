"""What a person decided about images: lists beside the results, as the data folder stays untouched."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from utils.config import InputError, listing, project_path, relative, require
from utils.eda.labels import list_labelled, plain, read_table
from utils.eda.probes import label_suspects, outliers
from utils.files import as_cell, from_cell, whole_file
from utils.images import BLACK, scan_folder
from utils.layout import find_images, list_images
from utils.report import check_folder

COLUMNS = ["path", "sha256", "action", "note"]
DROP, NO_CLASS = "drop", ""
OUTLIERS = 6
ENDING = r"((?<=[^/])[ _-](mask|seg|segmentation|gt)([ _-]?\d+)?)?\.[^./]+$"  # beside x.jpg: x.png, x_mask.png
FEW = 10  # images; where all of so many are right, the class's recall may still be 0.7


def read_images(
    folder: Path, run: Path, split: str | None = None, labels: str | None = None, columns: str | None = None
) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """Scan a folder and apply the run's corrections; → both tables of `scan_folder`, and what the report tells of them.

    Classes are those of the folders (`split`: see `list_images`) or of a table, `labels` (`columns`: see
    `list_labelled`). Raises InputError as these and `apply_corrections` do, and for the results of another folder.
    """
    place = check_folder(run, folder)
    entries = list_labelled(folder, project_path(labels), columns) if labels else list_images(folder, split)
    index, refused, counts = apply_corrections(run, *scan_folder(folder, entries))
    section = {
        "folder": place,
        "images": len(index),
        "refused": refused[["path", "reason"]].to_dict("records"),
        "skipped": dict(find_images(folder)[1].most_common()),
        "corrections": counts,
        "caution": cautions(index),
    }
    return index, refused, section


def apply_corrections(
    run: Path, index: pd.DataFrame, refused: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Give images the class that a person wrote into the run's ``corrections.csv``, and list dropped ones as refused.

    What was filled in in ``suspects.csv`` moves there; a line without an action decides nothing. Returns both tables of
    `scan_folder`, corrected, and how many images were `relabelled` and `dropped`. Raises InputError naming all lines
    that do not fit the images or contradict each other, and the classes left with fewer than three images.
    """
    path = run / "corrections.csv"
    known, filled = read_list(path), read_list(run / "suspects.csv")
    decided = pd.concat([known, filled])[COLUMNS]
    decided = decided[decided["action"] != ""]
    meanings = _meanings(index["class"].unique())
    _stop_at_problems(path, decided, pd.concat([index, refused]), meanings)
    actions = decided.drop_duplicates("path").set_index("path").reindex(index["path"].map(plain)).set_axis(index.index)
    classes = {word.casefold(): name for word, name in meanings.items()}
    chosen = actions["action"].str.casefold().map(classes).fillna(index["class"])
    dropped = chosen == NO_CLASS
    corrected = index.assign(**{"class": chosen.where(~dropped, index["class"])})
    _stop_at_small_classes(path, index["class"], chosen)
    new = filled[(filled["action"] != "") & ~filled["path"].isin(known.loc[known["action"] != "", "path"])]
    if len(new):  # EDA will write the suspects anew
        write_list(path, pd.concat([known, new]))
    reasons = ("dropped by hand: " + actions["note"]).str.removesuffix(": ")
    refused = pd.concat([refused, index.assign(reason=reasons).loc[dropped, refused.columns]])
    counts = {"relabelled": int((corrected["class"] != index["class"]).sum()), "dropped": int(dropped.sum())}
    return corrected[~dropped].reset_index(drop=True), refused.sort_values("path", ignore_index=True), counts


def cautions(index: pd.DataFrame) -> str:
    """Say what to be careful about: classes of few images, masks learned as photos, 16-bit colors that are black."""
    counts, paths = index["class"].value_counts().sort_index(), index["path"]
    few = [f"{name} {count}" for name, count in counts[counts < FEW].items()]
    alike = paths[paths.str.replace(ENDING, "", regex=True, case=False).duplicated(keep=False)]
    dark = paths[index["mode"].str.endswith(BLACK)]
    found = {
        f"{listing(few)}: fewer than {FEW} images tell nothing of a class, and its numbers may be chance": few,
        f"{len(alike)} images bear the name of another one beside them ({listing(alike, 2)}): if they are masks, or "
        "edits of one photo, move them out of the folder, or they are learned as photos": alike,
        f"images that are nearly black: {len(dark)} ({listing(dark, 2)}). If their colors have 10 to 14 bits in files "
        "of 16, scale them to 8": dark,
    }
    return ". ".join(sentence for sentence, names in found.items() if len(names))


def list_suspects(
    index: pd.DataFrame, copies: np.ndarray, probability: np.ndarray, features: np.ndarray
) -> pd.DataFrame:
    """List the images to look at, the surest first: copies under two labels, label suspects, outliers.

    `copies` (P, 2) are the positions of near-duplicates with two labels, probability (N, C) is out of fold, features
    (N, D) are those of the images. Returns their rows of the index, with an empty `action` and a `note` that says why.
    """
    classes, labels = np.unique(index["class"], return_inverse=True)
    names, paths, pixels = (index[column].to_numpy() for column in ("class", "path", "pixels"))
    notes = defaultdict(list)
    for first, second in copies:
        kind = "exact" if pixels[first] == pixels[second] else "near"
        notes[first].append(f"{kind} copy of {paths[second]} under {names[second]}")
        notes[second].append(f"{kind} copy of {paths[first]} under {names[first]}")
    for image, other in zip(*label_suspects(probability, labels), strict=True):
        notes[image].append(f"looks like {classes[other]} ({probability[image, other]:.2f})")
    for image in outliers(features)[:OUTLIERS]:
        notes[image].append("outlier")
    return index.iloc[list(notes)].assign(action="", note=["; ".join(reasons[:3]) for reasons in notes.values()])


def write_suspects(run: Path, suspects: pd.DataFrame) -> pd.DataFrame:
    """Write ``suspects.csv`` for a person to fill in; → the suspects in it, those that nobody has decided about."""
    decided = read_list(run / "corrections.csv")
    open_ones = suspects[~suspects["path"].map(plain).isin(decided.loc[decided["action"] != "", "path"])]
    write_list(run / "suspects.csv", open_ones[COLUMNS])
    return open_ones


def read_list(path: Path) -> pd.DataFrame:
    """Read COLUMNS and whatever a person added, all text; without the file, the list is empty.

    Raises InputError when it cannot be read.
    """
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS, dtype=str)
    table = read_table(path).map(from_cell).rename(columns=str.lower)
    missing = [name for name in COLUMNS[:3] if name not in table]
    require(
        not missing,
        f"{relative(path)} has no column {listing(missing)}: its first line must be {','.join(COLUMNS)}, as in the "
        "suspects.csv that EDA.ipynb writes",
    )
    others = [name for name in table.columns if name not in COLUMNS]
    return table[table["path"] != ""].assign(path=table["path"].map(plain)).reindex(columns=COLUMNS + others).fillna("")


def write_list(path: Path, table: pd.DataFrame) -> None:
    """Write a list with the delimiter that it had, as text to spreadsheets: in UTF-8 with its mark, no formulas."""
    first_line = path.read_text(encoding="utf-8-sig").partition("\n")[0] if path.exists() else ""
    delimiter, cells = max(",;\t", key=first_line.count), table.map(as_cell, na_action="ignore")
    try:
        with whole_file(path) as temporary:
            cells.to_csv(temporary, sep=delimiter, index=False, encoding="utf-8-sig", lineterminator="\n")
    except PermissionError:
        raise InputError(f"{relative(path)} cannot be replaced: close it where it is open") from None


def _meanings(classes: Iterable[str]) -> dict[str, str]:
    """Map what may stand as an action, in letters of any case, to a class, and the last one to NO_CLASS."""
    meanings = {plain(name): name for name in sorted(classes)}
    clash = [word for word in meanings if word.casefold() == DROP]
    if not clash:
        return meanings | {DROP: NO_CLASS}
    of_that_name = meanings.pop(clash[0])  # the word alone may mean either, so it means nothing
    return meanings | {f"class {DROP}": of_that_name, f"{DROP} image": NO_CLASS}


def _stop_at_problems(path: Path, decided: pd.DataFrame, files: pd.DataFrame, meanings: dict[str, str]) -> None:
    """Raise InputError where decisions do not fit the scanned files, or what actions may mean."""
    digests = dict(zip(files["path"].map(plain), files["sha256"], strict=True))
    *classes, drop = meanings  # the last word drops an image
    problems, known = [], {word.casefold() for word in meanings}
    for name, lines in decided.groupby("path", sort=False):
        actions = lines["action"].unique()
        unknown = [action for action in actions if action.casefold() not in known]
        problems += [f"{name}: {action} is neither “{drop}” nor a class ({listing(classes)})" for action in unknown]
        if len({action.casefold() for action in actions}) > 1:
            problems.append(f"{name}: its lines contradict each other ({' and '.join(actions)})")
        if name not in digests:
            problems.append(f"{name}: there is no such image any more")
        elif (lines["sha256"] == "").any():
            problems.append(f"{name}: its sha256 is missing, copy it from split.csv")
        elif (lines["sha256"].str.lower() != digests[name]).any():
            problems.append(f"{name}: the image has changed since, look at it again")
    require(
        not problems,
        f"{relative(path)} does not fit the images: {'; '.join(problems)}. Mend these lines or take them out (they may "
        "still stand in suspects.csv), and run EDA.ipynb again",
    )


def _stop_at_small_classes(path: Path, before: pd.Series, after: pd.Series) -> None:
    counts = before.value_counts().sort_index()
    left = after.value_counts().reindex(counts.index, fill_value=0)
    small = [f"{name} ({left[name]} of {counts[name]})" for name in counts.index if left[name] < min(3, counts[name])]
    require(
        not small,
        f"{relative(path)} leaves too few images of {listing(small)}: each class needs 3 or more, to train, validate "
        "and test. Take some of its lines out, or add images",
    )
