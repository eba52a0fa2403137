"""A table of labels, as most published data have it: which image is of which class."""

import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from pandas.errors import EmptyDataError, ParserError, ParserWarning

from utils.config import InputError, listing, relative, require
from utils.layout import Entry, extensions, find_images, path_in, stop_at_two_spellings

CLASS_COLUMNS = {"breed", "category", "class", "class_name", "classname", "diagnosis", "dx", "label", "labels"}
CLASS_COLUMNS |= {"species", "target", "variety"}
Names = tuple[dict[str, list[Path]], dict[str, list[Path]]]  # photos by whole paths, and by ends of paths


def list_labelled(folder: Path, table: Path, columns: str | None = None) -> list[Entry]:
    """List the images below a data folder with the classes that a table gives them, by name or path.

    `columns` names those of file and class, with a comma between; None: the one whose cells name the most images, and
    the one that is called label, class, target or alike. Refused are images that are missing or not listed, or have no
    class, or several. Raises InputError when the table cannot be read.
    """
    require(folder.is_dir(), f"the data folder {relative(folder)} does not exist: say where the images are")
    photos, rows = find_images(folder)[0], read_table(table)
    names = _names(folder, photos)
    file_column, class_column = _columns(table, rows, names, columns)
    labels = defaultdict(set)
    for cell, label in zip(rows[file_column].map(plain), rows[class_column], strict=True):
        found = _find(cell, names) or [folder / cell.replace(":", "").strip("/")]
        if len(found) > 1:
            which = " or ".join(path_in(folder, path) for path in found[:2])
            raise InputError(f"{relative(table)}: {cell} may be {which}: write their paths")
        labels[found[0]].add(unicodedata.normalize("NFC", label))
    labels.pop(folder, None)  # a line without a file's name
    present, entries = set(photos), []
    for path, given in labels.items():
        given = sorted(given - {""})
        reason = "" if len(given) == 1 else f"{table.name} gives it {' and '.join(given) or 'no class'}"
        if path not in present:
            reason = f"{table.name} lists it, but it is not there"
        entries.append(Entry(path, "" if reason else given[0], reason=reason))
    entries += [Entry(path, "", reason=f"{table.name} does not list it") for path in photos if path not in labels]
    classes = {entry.label for entry in entries} - {""}
    stop_at_two_spellings(table, classes)
    require(len(classes) > 1, f"{relative(table)}: {class_column} names {listing(classes) or 'no class'}: it takes two")
    return entries


def read_table(path: Path) -> pd.DataFrame:
    """Read a table, all text, parted by commas, semicolons, tabs or bars; raises InputError when it cannot be read."""
    options = {"engine": "python", "dtype": str, "encoding": "utf-8-sig", "keep_default_na": False}
    try:
        with path.open(encoding="utf-8-sig") as file:
            options["sep"] = max(",;\t|", key=file.readline().count)  # pandas may take a letter for it
        with warnings.catch_warnings(action="error", category=ParserWarning):  # a cell too many would be lost
            table = pd.read_csv(path, index_col=False, **options).fillna("").map(str.strip)
    except OSError as error:
        advice = "Close it where it is open, or give its right name"
        raise InputError(f"{relative(path)} cannot be read: {error.strerror}. {advice}") from None
    except UnicodeDecodeError:
        raise InputError(f"{relative(path)} is not text in UTF-8: save it as “CSV UTF-8” in the spreadsheet") from None
    except (ParserError, ParserWarning) as error:
        advice = "Text with a comma in it needs quotes; mend that, and run EDA.ipynb again"
        raise InputError(f"{relative(path)} cannot be read: {error}. {advice}") from None
    except EmptyDataError:
        return pd.DataFrame()
    return table.rename(columns=str.strip)


def plain(path: str) -> str:
    """Write a path as it is compared: with slashes, its letters in one spelling (NFC)."""
    return unicodedata.normalize("NFC", path.strip().replace("\\", "/").removeprefix("./"))


def _columns(table: Path, rows: pd.DataFrame, names: Names, columns: str | None) -> list[str]:
    """Return the columns of file and class, as given or guessed."""
    if columns:
        chosen = [name.strip() for name in columns.split(",")]
        fits = len(chosen) == 2 and set(chosen) <= set(rows.columns)
        require(fits, f"LABEL_COLUMNS {columns!r}: {relative(table)} has the columns {listing(rows.columns)}")
        return chosen
    named = {column: len({path for cell in rows[column] for path in _find(plain(cell), names)}) for column in rows}
    of_files = max(named, key=named.get, default="")
    others = [column for column in rows if column != of_files]
    of_classes = [column for column in others if column.casefold() in CLASS_COLUMNS] or others
    none = "" if any(named.values()) else "None of them names an image of the data folder. "
    require(
        not none and len(of_classes) == 1,
        f"{relative(table)}: which of its columns ({listing(rows.columns)}) hold file and class? {none}Say it, as "
        "-p LABEL_COLUMNS=file,label",
    )
    return [of_files, *of_classes]


def _names(folder: Path, photos: Iterable[Path]) -> Names:
    """Map what a table may call photos to them, with the extension and without."""
    whole, ends = defaultdict(list), defaultdict(list)
    for path in photos:
        name = plain(path_in(folder, path))
        for form in {name, _bare(name)}:
            whole[form].append(path)
            for end in _ends(form):
                ends[end].append(path)
    return whole, ends


def _find(name: str, names: Names) -> list[Path]:
    """Find the photos that a name or path may mean; a path may also begin above the data folder."""
    forms = (name, _bare(name))
    places = [(known, form) for known in names for form in forms]
    places += [(names[0], end) for form in forms for end in _ends(form)]
    return next((known[form] for known, form in places if form in known), [])


def _ends(path: str) -> list[str]:
    """List the ends of a path: b/c and c of a/b/c."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(1, len(parts))]


def _bare(name: str) -> str:
    """Leave out the extension of an image."""
    start, dot, suffix = name.rpartition(".")
    return start if f"{dot}{suffix}".lower() in extensions() else name
