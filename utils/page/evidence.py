"""What a run left, as the page shows it: its photos, and the predictions for those that a network has not seen."""

import ast
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import softmax

from utils.config import ROOT, InputError, relative
from utils.cross_validation import load_answers
from utils.files import sha256
from utils.intervals import share_interval
from utils.metrics import prediction_table
from utils.predict import Classifier


def unseen_predictions(run: Path, arch: str, kind: str, classifier: Classifier, index: pd.DataFrame) -> pd.DataFrame:
    """Make a `prediction_table` of the photos by networks that have not seen them, the surest first.

    Out of fold where the folds' networks have predicted as files of this `kind`, onnx or int8; otherwise the deployed
    file on the test part. A column more: out_of_fold. Raises InputError when the logits kept by onnx_quant.ipynb belong
    to another split or network.
    """
    details = classifier.details
    made_from = {"split": sha256(run / "split.csv"), "model": sha256(run / f"fine_tuned_{arch}.pth")}
    logits = load_answers(run / f"out_of_fold_{arch}.npz", index["path"], **made_from).get(kind)
    if logits is None:
        part = index[index["split"] == "test"]
        probabilities = np.stack([classifier.probabilities(photo) for photo in part["photo"]])
    else:
        predicted = ~np.isnan(logits[:, 0])
        part = index[predicted]
        probabilities = softmax(logits[predicted] / details.get("temperature", 1.0), axis=1)
    table = prediction_table(part, probabilities, details["classes"])
    return table.assign(out_of_fold=logits is not None).sort_values("probability", ascending=False, kind="stable")


def of_hundred(predictions: pd.DataFrame) -> dict[str, int]:
    """Say how many of 100 photos are predicted correctly, and the ends of the 95 % interval."""
    low, high = share_interval(predictions["correct"].to_numpy(), predictions["group"].to_numpy())
    shares = {"about": predictions["correct"].mean(), "low": low, "high": high}
    return {name: round(100 * value) for name, value in shares.items()}


def class_rows(predictions: pd.DataFrame, names: Sequence[str]) -> list[dict]:
    """Describe each class: its name, photos predicted, how many correctly and how many of 100, and a typical photo.

    Typical is the photo that is recognized most surely; `rows` has its row of the table.
    """
    described = []
    for name in names:
        own = predictions[predictions["class"] == name]
        row = {"name": name, "images": len(own), "right": int(own["correct"].sum()), "groups": own["group"].nunique()}
        if len(own):
            row |= of_hundred(own)
        typical = own.sort_values("correct", ascending=False, kind="stable").index[:1]
        described.append(row | {"rows": list(typical)})
    return described


def confusions(predictions: pd.DataFrame) -> list[dict]:
    """List which class is taken for which, the most frequent first: of how many photos, and rows of the table."""
    pairs = predictions[~predictions["correct"]].groupby(["class", "prediction"], sort=False).groups
    counts = predictions["class"].value_counts()
    found = [
        {"name": name, "prediction": prediction, "of": int(counts[name]), "rows": list(rows)}
        for (name, prediction), rows in pairs.items()
    ]
    return sorted(found, key=lambda pair: -len(pair["rows"]))


def mistakes(predictions: pd.DataFrame) -> list[dict]:
    """List the wrong predictions, the surest first."""
    wrong = predictions[~predictions["correct"]]
    return wrong.assign(rows=[[row] for row in wrong.index]).to_dict("records")


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
