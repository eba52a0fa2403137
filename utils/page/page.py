"""One HTML file of a run: what was found, and the model itself, to open anywhere without a network."""

import base64
import hashlib
from datetime import date
from pathlib import Path

import pandas as pd

from utils import split
from utils.config import CHECKPOINTS, ROOT, InputError, make_folder, project_path, relative, require
from utils.files import whole_file
from utils.page import evidence, tryout
from utils.predict import Classifier
from utils.report import TEMPLATES, read_report, render

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
    run = CHECKPOINTS / name
    report = read_report(run)
    complete = {"train", "comparison"} <= set(report)
    require(complete, f"{relative(run / 'report.json')} is not complete: run all four notebooks first")
    notebooks = evidence.notebook_folder(name)
    index = load_photos(run, project_path(data or evidence.read_settings(notebooks / "train.ipynb")["DATA"]))
    deployed, kind = deployed_file(run, report)
    classifier = Classifier(deployed)
    trial, missing = _make_tryout(classifier, deployed, index)
    made = date.fromtimestamp((run / "report.json").stat().st_mtime).isoformat()
    content = {"name": name, "made": made, "tryout": trial, "tried": deployed.name, "kind": kind, "report": report}
    content["figures"] = {tag: evidence.read_figure(notebooks / f"{book}.ipynb", tag) for tag, book in FIGURES.items()}
    predictions = evidence.unseen_predictions(run, report["train"]["arch"], kind, classifier, index)
    content |= show_predictions(predictions, index, classifier.details["classes"])
    content["novelty"] = "novelty" in [output.name for output in classifier.session.get_outputs()]
    target = ROOT / "runs" / name / "page.html"
    make_folder(target.parent)
    with whole_file(target) as temporary:
        temporary.write_text(fill(content), encoding="utf-8")
    return target, missing


def load_photos(run: Path, folder: Path) -> pd.DataFrame:
    """Read the split of a run, with a column more, photo: where the file is."""
    require(folder.is_dir(), f"the photos are no longer in {relative(folder)}: say where they are, by --data DIR")
    index = split.load_index(run / "split.csv", folder)
    return index.assign(photo=[folder / path for path in index["path"]])


def deployed_file(run: Path, report: dict) -> tuple[Path, str]:
    """Find the file that takes photos and ships, or, where only INT8 takes photos, that one; → the file, its kind."""
    arch = report["train"]["arch"]
    whole = run / f"{arch}_deploy.onnx"
    if report["comparison"]["verdict"]["ship"] != "int8" and whole.exists():
        return whole, "onnx"
    return run / f"{arch}_int8_deploy.onnx", "int8"


def _make_tryout(classifier: Classifier, deployed: Path, index: pd.DataFrame) -> tuple[dict | None, str]:
    try:
        return tryout.make_tryout(classifier, deployed, tryout.choose_samples(index)), ""
    except InputError as error:
        return None, str(error)


def show_predictions(predictions: pd.DataFrame, index: pd.DataFrame, classes: list[str]) -> dict:
    """Collect what the page shows of the predictions, photos as data URIs."""
    rows = evidence.class_rows(predictions, classes)
    never = [row["name"] for row in rows if row["images"] and not row["right"]]
    found = predictions[~predictions["class"].isin(never)]
    return {
        "never": never if len(found) else [],
        "score": evidence.of_hundred(found if len(found) else predictions),
        "predicted": len(predictions),
        "out_of_fold": bool(predictions["out_of_fold"].all()),
        "vague": max((row for row in rows if row["images"]), key=lambda row: row["high"] - row["low"]),
        "classes": classes,
        "class_rows": _with_photos(rows[:CLASSES], index, LARGE),
        "confusions": _with_photos(evidence.confusions(predictions)[:CONFUSIONS], index, SMALL),
        "mistakes": _with_photos(evidence.mistakes(predictions)[:MISTAKES], index, SMALL),
    }


def _with_photos(entries: list[dict], index: pd.DataFrame, side: int) -> list[dict]:
    """Put photos into entries that name their rows of the table."""
    for entry in entries:
        entry["photos"] = [tryout.photo_uri(index.at[row, "photo"], side) for row in entry["rows"][:PHOTOS]]
    return entries


def fill(content: dict) -> str:
    """Fill the template, and allow the browser nothing but what is in the file."""
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    script = (TEMPLATES / "script.js").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; style-src '{_source(style)}'; img-src data:; script-src '{_source(script)}' blob: "
        "'wasm-unsafe-eval'; base-uri 'none'; form-action 'none'"
    )
    return render("page.html", **content, policy=policy, style=style, script=script) + "\n"


def _source(text: str) -> str:
    """Name a text inside the page, as a Content-Security-Policy does."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
