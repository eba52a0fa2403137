"""A bar that shows how far a loop is, and leaves nothing behind."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import lru_cache

from tqdm import tqdm

from utils import config


def progress(items: Iterable, name: str, total: int | None = None) -> tqdm:
    """Go through `items` and show on one line how far it is; the line disappears at the end.

    tqdm's own bar for notebooks is a widget: whoever saves the notebook and opens it again finds "Error displaying
    widget" in its place.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if config.on_worker or not hasattr(shell, "kernel"):
        return tqdm(items, name, total, leave=False, disable=config.on_worker)
    return tqdm(items, name, total, leave=False, file=_line(shell.execution_count), ascii=False, ncols=80, position=0)


class _Line:
    """A file that shows what was last written to it as an output of the cell, which a blank empties again."""

    handle = None

    def write(self, text: str) -> None:
        from IPython.display import display

        shown = {"text/plain": text.strip()} if text.strip() else {}
        if self.handle:
            self.handle.update(shown, raw=True)
        elif shown:
            self.handle = display(shown, raw=True, display_id=True)

    def flush(self) -> None:
        pass


@lru_cache(1)
def _line(execution_count: int) -> _Line:
    """Give all bars of one execution the same line: even an empty output takes space."""
    return _Line()
