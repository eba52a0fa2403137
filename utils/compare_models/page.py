"""One HTML file of a run: what was found, and the model itself, to open anywhere without a network."""

import ast
import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import softmax

from utils import split
from utils.compare_models import tryout
from utils.compare_models.models import load_out_of_fold
from utils.config import CHECKPOINTS, ROOT, InputError, make_folder, project_path, relative, require
from utils.files import whole_file
from utils.intervals import share_interval
from utils.metrics import prediction_table
from utils.predict import Classifier
from utils.report import DEPLOYED, TEMPLATES, read_report, render, shipped_file

LARGE = 240  # pixels a side of a class's photo
SMALL = 160  # pixels a side of other photos
CLASSES = 60  # shown at most
CONFUSIONS = 6
PHOTOS = 4  # of each confusion
MISTAKES = 8
FIGURES = {  # tag of a cell → its notebook
    "grad-cam-after": "train",
    "learning-curve": "train",
    "reliability": "train",
    "trade-off": "compare_models",
}


def write_page(name: str, data: str = "") -> tuple[Path, str]:
    """Write ``runs/<name>/page.html`` from what a run left; → the file, and why it has no model to try, if it has none.

    `data` is the folder of its photos, if they have been moved. Raises InputError when the run is not complete, or its
    photos are gone or have changed.
    """
    run, target = CHECKPOINTS / name, ROOT / "runs" / name / "page.html"
    report = read_report(run)
    complete = {"train", "comparison"} <= set(report)
    require(complete, f"{relative(run / 'report.json')} is not complete: run all four notebooks first")
    notebooks = notebook_folder(name)
    folder = project_path(data or report["dataset"]["folder"])
    index = split.load_index(run / "split.csv", folder)
    index["photo"] = [folder / path for path in index["path"]]
    deployed = shipped_file(run)
    kind = "int8" if deployed.name.endswith(DEPLOYED["int8"]) else "onnx"
    classifier = Classifier(deployed)
    trial, missing = None, ""
    try:
        trial = tryout.make_tryout(classifier, deployed, index)
    except InputError as error:
        missing = str(error)
    predictions = unseen_predictions(run, report["train"]["arch"], kind, classifier, index)
    content = {
        "name": name,
        "kind": kind,
        "report": report,
        "tryout": trial,
        "tried": deployed.name,
        "made": date.fromtimestamp((run / "report.json").stat().st_mtime).isoformat(),
        "novelty": "novelty" in [output.name for output in classifier.session.get_outputs()],
        "figures": {tag: read_figure(notebooks / f"{book}.ipynb", tag) for tag, book in FIGURES.items()},
        **show_predictions(predictions, classifier.details["classes"]),
    }
    make_folder(target.parent)
    with whole_file(target) as temporary:
        temporary.write_text(fill(content), encoding="utf-8")
    return target, missing


def unseen_predictions(run: Path, arch: str, kind: str, classifier: Classifier, index: pd.DataFrame) -> pd.DataFrame:
    """Make a `prediction_table` of the photos by networks that have not seen them, the surest first.

    Out of fold where the folds' networks have predicted as files of this `kind`, onnx or int8; otherwise the deployed
    file on the test part. Columns more: out_of_fold, photo. Raises InputError as `load_out_of_fold` does.
    """
    details, logits = classifier.details, load_out_of_fold(run, arch, index).get(kind)
    if logits is None:
        part = index[index["split"] == "test"]
        probabilities = np.stack([classifier.probabilities(photo) for photo in part["photo"]])
    else:
        predicted = ~np.isnan(logits[:, 0])
        part = index[predicted]
        probabilities = softmax(logits[predicted] / details.get("temperature", 1.0), axis=1)
    table = prediction_table(part, probabilities, details["classes"])
    table = table.assign(out_of_fold=logits is not None, photo=part["photo"])
    return table.sort_values("probability", ascending=False, kind="stable")


def of_hundred(predictions: pd.DataFrame) -> dict[str, int]:
    """Say how many of 100 photos are predicted correctly, and the ends of the 95 % interval."""
    low, high = share_interval(predictions["correct"].to_numpy(), predictions["group"].to_numpy())
    shares = {"about": predictions["correct"].mean(), "low": low, "high": high}
    return {name: round(100 * value) for name, value in shares.items()}


def show_predictions(predictions: pd.DataFrame, classes: Sequence[str]) -> dict:
    """Collect what the page shows of the predictions, photos as data URIs."""
    rows = [class_row(predictions[predictions["class"] == name], name) for name in classes]
    for row in rows[:CLASSES]:
        row["photos"] = _photos(row["typical"], LARGE)
    wrong = predictions[~predictions["correct"]]
    mistakes = [row | {"photos": _photos([row["photo"]], SMALL)} for row in wrong[:MISTAKES].to_dict("records")]
    never = [row["name"] for row in rows if row["images"] and not row["right"]]
    found = predictions[~predictions["class"].isin(never)]
    return {
        "never": never if len(found) else [],
        "score": of_hundred(found if len(found) else predictions),
        "predicted": len(predictions),
        "out_of_fold": bool(predictions["out_of_fold"].all()),
        "vague": max((row for row in rows if row["images"]), key=lambda row: row["high"] - row["low"]),
        "classes": classes,
        "class_rows": rows[:CLASSES],
        "confusions": confusions(wrong, predictions["class"].value_counts()),
        "mistakes": mistakes,
    }


def class_row(own: pd.DataFrame, name: str) -> dict:
    """Describe a class: its name, photos predicted, how many correctly and how many of 100, and a typical photo.

    Typical is the photo that is recognized most surely; the surest predictions come first.
    """
    typical = own.sort_values("correct", ascending=False, kind="stable")["photo"][:1]
    row = {"name": name, "images": len(own), "right": int(own["correct"].sum()), "groups": own["group"].nunique()}
    return row | {"typical": typical} | (of_hundred(own) if len(own) else {})


def confusions(wrong: pd.DataFrame, counts: pd.Series) -> list[dict]:
    """List which class is taken for which, the most frequent first: how often, of how many photos, and some of them."""
    pairs = wrong.groupby(["class", "prediction"], sort=False)["photo"].apply(list)
    found = []
    for (name, prediction), photos in sorted(pairs.items(), key=lambda pair: -len(pair[1]))[:CONFUSIONS]:
        pair = {"name": name, "prediction": prediction, "count": len(photos), "of": int(counts[name])}
        found.append(pair | {"photos": _photos(photos, SMALL)})
    return found


def _photos(paths: Iterable[Path], side: int) -> list[str]:
    return [tryout.photo_uri(path, side) for path in list(paths)[:PHOTOS]]


def fill(content: dict) -> str:
    """Fill the template, and allow the browser nothing but what is in the file."""
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    policy = (
        f"default-src 'none'; style-src '{_source(style)}'; img-src data:; script-src '{_source(script)}' blob: "
        "'wasm-unsafe-eval'; base-uri 'none'; form-action 'none'"
    )
    return render("page.html", **content, policy=policy, style=style, script=script) + "\n"


def _source(text: str) -> str:
    """Name a text inside the page, as a Content-Security-Policy does."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def notebook_folder(name: str) -> Path:
    """Find the folder of a run's executed notebooks: its own, or the project's, where they ran in Jupyter."""
    for folder in (ROOT / "runs" / name, ROOT):
        if _name_of(folder / "train.ipynb") == name:
            return folder
    raise InputError(
        f"there is no executed notebook of the run {name!r} in {relative(ROOT / 'runs' / name)}: run it first, as "
        "python run.py does"
    )


def _name_of(path: Path) -> str | None:
    """Read the NAME that a notebook ran with: its own, and above it that of the command line."""
    name = None
    for cell in _tagged(path, "parameters") + _tagged(path, "injected-parameters"):
        for statement in ast.parse("".join(cell["source"])).body:
            if statement.targets[0].id == "NAME":
                name = ast.literal_eval(statement.value)
    return name


def read_figure(path: Path, tag: str) -> str:
    """Return the figure of the cell with this tag, a PNG in base64; empty where there is none."""
    outputs = [output.get("data", {}) for cell in _tagged(path, tag) for output in cell.get("outputs", [])]
    return next(("".join(data["image/png"]).replace("\n", "") for data in outputs if "image/png" in data), "")


def _tagged(path: Path, tag: str) -> list[dict]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.exists() else []
    return [cell for cell in cells if tag in cell["metadata"].get("tags", [])]
