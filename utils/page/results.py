"""What a run left, opened: report, executed notebooks, photos, and the file that takes photos."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from utils import split
from utils.config import CHECKPOINTS, project_path, relative, require
from utils.page.notebooks import notebook_folder, read_settings
from utils.predict import Classifier
from utils.report import read_report


class Results(NamedTuple):
    """A run's folder, report and notebooks; its photos, a row each; the deployed file, and whether it is onnx or int8.

    The table has the columns of the split, and photo: where the file is.
    """

    run: Path
    report: dict
    notebooks: Path
    index: pd.DataFrame
    deployed: Path
    kind: str
    classifier: Classifier


def open_results(name: str, data: str = "") -> Results:
    """Open what the run of a name left; `data` is the folder of its photos, if they have been moved.

    Raises InputError when the run is not complete, or its photos are gone or have changed.
    """
    run = CHECKPOINTS / name
    report = read_report(run)
    complete = {"train", "comparison"} <= set(report)
    require(complete, f"{relative(run / 'report.json')} is not complete: run all four notebooks first")
    notebooks = notebook_folder(name)
    photos = project_path(data or read_settings(notebooks / "train.ipynb")["DATA"])
    require(photos.is_dir(), f"the photos are no longer in {relative(photos)}: say where they are, by --data DIR")
    index = split.load_index(run / "split.csv", photos)
    index["photo"] = [photos / path for path in index["path"]]
    deployed, kind = deployed_file(run, report)
    return Results(run, report, notebooks, index, deployed, kind, Classifier(deployed))


def deployed_file(run: Path, report: dict) -> tuple[Path, str]:
    """Find the file that takes photos and ships, or, where only INT8 takes photos, that one; → the file, its kind."""
    arch = report["train"]["arch"]
    whole = run / f"{arch}_deploy.onnx"
    if report["comparison"]["verdict"]["ship"] != "int8" and whole.exists():
        return whole, "onnx"
    return run / f"{arch}_int8_deploy.onnx", "int8"
