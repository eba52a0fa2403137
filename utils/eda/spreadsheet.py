"""Lists of images that a person edits: in any editor, in a spreadsheet, on any system."""

import csv
import io
import unicodedata
from pathlib import Path

import pandas as pd

from utils.config import InputError, listing, relative
from utils.files import whole_file

COLUMNS = ["path", "sha256", "action", "note"]


def read_list(path: Path) -> pd.DataFrame:
    """Read COLUMNS and whatever a person added, all text; without the file, the list is empty.

    Commas, semicolons or tabs part the columns, and paths may have backslashes, as spreadsheets on Windows write them.
    Raises InputError when it cannot be read.
    """
    text = _read_text(path) if path.exists() else ",".join(COLUMNS)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    try:
        lines = [[cell.strip() for cell in cells] for cells in reader if any(cells)]
    except csv.Error as error:
        raise InputError(
            f"{relative(path)}, line {reader.line_num}: {error}. Mend it, and run EDA.ipynb again"
        ) from None
    columns = [name.lower() for name in lines[0]] if lines else []
    if missing := [name for name in COLUMNS[:3] if name not in columns]:
        raise InputError(
            f"{relative(path)} has no column {listing(missing)}: its first line must be {','.join(COLUMNS)}, as in the "
            "suspects.csv that EDA.ipynb writes"
        )
    last = len(columns) - 1  # a note that was typed with commas fills more cells
    rows = [[*cells[:last], ",".join(cells[last:])] for cells in lines[1:]]
    table = pd.DataFrame([dict(zip(columns, row, strict=False)) for row in rows], columns=columns, dtype=str)
    return table.assign(path=table["path"].map(plain)).reindex(columns=_first(COLUMNS, columns)).fillna("")


def write_list(path: Path, table: pd.DataFrame) -> None:
    """Write a list with the delimiter that it had, and the mark by which spreadsheets recognize UTF-8."""
    delimiter = _delimiter(_read_text(path)) if path.exists() else ","
    try:
        with whole_file(path) as temporary:
            table.to_csv(temporary, sep=delimiter, index=False, encoding="utf-8-sig", lineterminator="\n")
    except PermissionError:
        raise InputError(
            f"{relative(path)} cannot be replaced: close it where it is open, and run this again"
        ) from None


def plain(path: str) -> str:
    """Write a path as it is compared: with slashes, its letters in one spelling (NFC)."""
    return unicodedata.normalize("NFC", path.strip().replace("\\", "/").removeprefix("./"))


def _first(names: list[str], others: list[str]) -> list[str]:
    return names + [name for name in others if name not in names]


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
        return content.decode("utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except PermissionError:
        raise InputError(f"{relative(path)} cannot be read: close it where it is open, and run this again") from None
    except UnicodeDecodeError:
        raise InputError(
            f"{relative(path)} is not text in UTF-8: save it as UTF-8, in a spreadsheet as “CSV UTF-8”"
        ) from None


def _delimiter(text: str) -> str:
    """Find out from the first line what parts the columns."""
    return max(",;\t", key=text.partition("\n")[0].count)
