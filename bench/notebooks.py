"""What a notebook shows, for benchmarks: its tagged cells, executed outside it."""

import json
from collections.abc import Sequence

from utils.config import ROOT


def run_cells(notebook: str, tags: Sequence[str], names: dict) -> dict:
    """Execute a notebook's cells that have one of the `tags`, in their order, with the variables `names`; → these."""
    cells = json.loads((ROOT / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        if set(tags) & set(cell["metadata"].get("tags", [])):
            exec("".join(cell["source"]), names)
    return names
