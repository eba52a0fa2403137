"""One HTML file of a run: what was found, and the model itself, to open anywhere without a network."""

import base64
import hashlib
from datetime import date
from pathlib import Path

import jinja2
import pandas as pd

from utils import split
from utils.config import CHECKPOINTS, ROOT, InputError, project_path, relative, require
from utils.files import whole_file
from utils.page import answers, notebooks, sentences, tryout
from utils.page.numbers import expert_tables
from utils.page.photos import photo_uri
from utils.predict import Classifier
from utils.report import read_report

HERE = Path(__file__).parent
TYPICAL, SMALL = 240, 160  # pixels a side of a photo on the page
SHOWN = {"confusions": 6, "photos": 4, "mistakes": 8, "classes": 60, "samples": 10}  # at most
FIGURES = {  # tag of a cell → notebook
    "grad-cam-after": "train",
    "learning-curve": "train",
    "trade-off": "compare_models",
    "reliability": "train",
}


def write_page(name: str, data: str = "") -> tuple[Path, str]:
    """Write ``runs/<name>/page.html`` from what a run left; → the file, and why it has no model to try, if it has none.

    `data` is the folder of its photos, if they have been moved. Raises InputError when the run is not complete.
    """
    run, target = CHECKPOINTS / name, ROOT / "runs" / name / "page.html"
    report = read_report(run)
    complete = {"train", "comparison"} <= set(report)
    require(complete, f"{relative(run / 'report.json')} is not complete: run all four notebooks first")
    folder = notebooks.notebook_folder(name)
    photos = project_path(data or notebooks.read_settings(folder / "train.ipynb")["DATA"])
    require(photos.is_dir(), f"the photos are no longer in {relative(photos)}: say where they are, by --data DIR")
    kind, deployed = deployed_file(run, report)
    classifier = Classifier(deployed)
    index = split.load_index(run / "split.csv", photos)
    index["photo"] = [photos / path for path in index["path"]]
    content = {
        "name": name,
        "made": date.fromtimestamp((run / "report.json").stat().st_mtime).isoformat(),
        **evidence(run, report, kind, index, classifier),
        "figures": {tag: notebooks.read_figure(folder / f"{book}.ipynb", tag) for tag, book in FIGURES.items()},
        "tried": deployed.name,
        "ships_tried": kind in ("onnx", report["comparison"]["verdict"]["ship"]),
    }
    try:
        content["tryout"], missing = tryout.make_tryout(classifier, deployed, samples(index)), ""
    except InputError as error:
        content["tryout"], missing = None, str(error)
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as temporary:
        temporary.write_text(render(content), encoding="utf-8")
    return target, missing


def deployed_file(run: Path, report: dict) -> tuple[str, Path]:
    """Find the file that takes photos and ships, or, where only INT8 takes photos, that one; → its kind, the file."""
    arch, ship = report["train"]["arch"], report["comparison"]["verdict"]["ship"]
    whole = run / f"{arch}_deploy.onnx"
    if ship != "int8" and whole.exists():
        return "onnx", whole
    return "int8", run / f"{arch}_int8_deploy.onnx"


def evidence(run: Path, report: dict, kind: str, index: pd.DataFrame, classifier: Classifier) -> dict:
    """Collect what the page says and shows, photos as data URIs."""
    table = answers.unseen_answers(run, report["train"]["arch"], kind, index, classifier)
    rows = answers.class_rows(table, classifier.details["classes"])
    for row in rows[: SHOWN["classes"]]:
        row["photo"] = photo_uri(index.at[row["typical"], "photo"], TYPICAL) if "typical" in row else ""
    confusions = answers.confusions(table, SHOWN["confusions"])
    for pair in confusions:
        pair["photos"] = [photo_uri(photo, SMALL) for photo in index.loc[pair["rows"][: SHOWN["photos"]], "photo"]]
    mistakes = table[~table["right"]].head(SHOWN["mistakes"]).copy()
    mistakes["photo"] = [photo_uri(photo, SMALL) for photo in index.loc[mistakes.index, "photo"]]
    models = report["comparison"]["models"]
    sizes = {name: sentences.size_in_words(model["bytes"]) for name, model in models.items()}
    return {
        "report": report,
        "question": sentences.question(classifier.details["classes"]),
        "verdict": sentences.verdict_sentence(report, sizes),
        "score": answers.of_hundred(table),
        "asked": len(table),
        "out_of_fold": bool(table["out_of_fold"].all()),
        "classes": rows,
        "confusions": confusions,
        "mistakes": mistakes.to_dict("records"),
        "sizes": sizes,
        "limits": sentences.limits(report, rows, classifier.details),
        "more_photos": sentences.more_photos(report["train"].get("learning_curve", {})),
        "numbers": expert_tables(report),
    }


def samples(index: pd.DataFrame) -> list[tuple[str, Path]]:
    """Choose photos of the test part, of one class after the other."""
    test = index[index["split"] == "test"]
    turns = test.groupby("class").cumcount().sort_values(kind="stable").index
    chosen = test.loc[turns[: SHOWN["samples"]]]
    return list(zip(chosen["class"], chosen["photo"], strict=True))


def render(content: dict) -> str:
    """Fill the template, which escapes every text, and allow the browser nothing but what is in the file."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    parts = {name: (HERE / name).read_text(encoding="utf-8") for name in ("style.css", "script.js")}
    hashes = {name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for name, text in parts.items()}
    policy = (
        f"default-src 'none'; style-src 'sha256-{hashes['style.css']}'; img-src data:; "
        f"script-src 'sha256-{hashes['script.js']}' blob: 'wasm-unsafe-eval'; base-uri 'none'; form-action 'none'"
    )
    return environment.get_template("template.html").render(
        content, policy=policy, style=parts["style.css"], script=parts["script.js"]
    )
