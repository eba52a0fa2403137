"""The executed notebooks of a run: the settings that they ran with, and the figures that they show."""

import ast
import json
from pathlib import Path

from utils.config import ROOT, InputError, relative


def notebook_folder(name: str) -> Path:
    """Find the folder of a run's executed notebooks: its own, or the project's, where they ran in Jupyter."""
    for folder in (ROOT / "runs" / name, ROOT):
        if (folder / "train.ipynb").exists() and read_settings(folder / "train.ipynb").get("NAME") == name:
            return folder
    raise InputError(
        f"there is no executed notebook of the run {name!r} in {relative(ROOT / 'runs' / name)}: run it first, as "
        "python run.py does"
    )


def read_settings(path: Path) -> dict:
    """Read the settings that a notebook ran with: its own, and below them those of the command line."""
    settings = {}
    for tag in ("parameters", "injected-parameters"):
        for cell in _tagged(path, tag):
            for statement in ast.parse("".join(cell["source"])).body:
                settings[statement.targets[0].id] = ast.literal_eval(statement.value)
    return settings


def read_figure(path: Path, tag: str) -> str:
    """Return the figure of the cell with this tag, a PNG in base64; empty where there is none."""
    outputs = [output.get("data", {}) for cell in _tagged(path, tag) for output in cell.get("outputs", [])]
    return next(("".join(data["image/png"]).replace("\n", "") for data in outputs if "image/png" in data), "")


def _tagged(path: Path, tag: str) -> list[dict]:
    if not path.exists():
        return []
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (ValueError, KeyError):
        raise InputError(f"{relative(path)} is not a notebook that can be read: run it again") from None
    return [cell for cell in cells if tag in cell["metadata"].get("tags", [])]
