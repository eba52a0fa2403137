"""One HTML file of a run: what was found, and the model itself, to open anywhere without a network."""

import base64
import hashlib
from datetime import date
from pathlib import Path

import jinja2
import pandas as pd

from utils.config import ROOT, InputError
from utils.files import whole_file
from utils.page import answers, sentences, tryout
from utils.page.notebooks import read_figure
from utils.page.numbers import expert_tables
from utils.page.photos import photo_uri
from utils.page.results import Results, open_results

HERE = Path(__file__).parent
LARGE, SMALL = 240, 160  # pixels a side of a photo on the page
CLASSES, CONFUSIONS, PHOTOS, MISTAKES, SAMPLES = 60, 6, 4, 8, 10  # shown at most; PHOTOS for each confusion
FIGURES = {  # tag of a cell → its notebook
    "grad-cam-after": "train",
    "learning-curve": "train",
    "reliability": "train",
    "trade-off": "compare_models",
}


def write_page(name: str, data: str = "") -> tuple[Path, str]:
    """Write ``runs/<name>/page.html`` from what a run left; → the file, and why it has no model to try, if it has none.

    `data` is the folder of its photos, if they have been moved. Raises InputError when the run is not complete.
    """
    results, target = open_results(name, data), ROOT / "runs" / name / "page.html"
    missing = ""
    try:
        trial = tryout.make_tryout(results.classifier, results.deployed, choose_samples(results.index))
    except InputError as error:
        trial, missing = None, str(error)
    made = date.fromtimestamp((results.run / "report.json").stat().st_mtime).isoformat()
    content = {"name": name, "made": made, "tryout": trial, **evidence(results)}
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as temporary:
        temporary.write_text(render(content), encoding="utf-8")
    return target, missing


def evidence(results: Results) -> dict:
    """Collect what the page says and shows, photos as data URIs."""
    report, classes = results.report, results.classifier.details["classes"]
    table = answers.unseen_answers(results)
    rows = answers.class_rows(table, classes)
    outputs = [output.name for output in results.classifier.session.get_outputs()]
    sizes = {name: sentences.size_in_words(model["bytes"]) for name, model in report["comparison"]["models"].items()}
    return {
        "report": report,
        "question": sentences.question(classes),
        "verdict": sentences.verdict_sentence(report, sizes),
        "score": answers.of_hundred(table),
        "asked": len(table),
        "out_of_fold": bool(table["out_of_fold"].all()),
        "tried": results.deployed.name,
        "ships_tried": results.kind in ("onnx", report["comparison"]["verdict"]["ship"]),
        "classes": with_photos(rows[:CLASSES], results.index, LARGE),
        "more_classes": len(rows[CLASSES:]),
        "confusions": with_photos(answers.confusions(table)[:CONFUSIONS], results.index, SMALL),
        "mistakes": with_photos(answers.mistakes(table)[:MISTAKES], results.index, SMALL),
        "figures": {tag: read_figure(results.notebooks / f"{book}.ipynb", tag) for tag, book in FIGURES.items()},
        "sizes": sizes,
        "limits": sentences.limits(report, rows, "novelty" in outputs),
        "more_photos": sentences.more_photos(report["train"].get("learning_curve", {})),
        "numbers": expert_tables(report),
    }


def with_photos(entries: list[dict], index: pd.DataFrame, side: int) -> list[dict]:
    """Put photos into entries that name their rows of the table."""
    return [
        entry | {"photos": [photo_uri(index.at[row, "photo"], side) for row in entry["rows"][:PHOTOS]]}
        for entry in entries
    ]


def choose_samples(index: pd.DataFrame) -> list[tuple[str, Path]]:
    """Choose photos of the test part, of one class after the other; → (class, file) each."""
    test = index[index["split"] == "test"]
    turns = test.groupby("class").cumcount().sort_values(kind="stable").index
    chosen = test.loc[turns[:SAMPLES]]
    return list(zip(chosen["class"], chosen["photo"], strict=True))


def render(content: dict) -> str:
    """Fill the template, which escapes every text, and allow the browser nothing but what is in the file."""
    loader = jinja2.FileSystemLoader(HERE)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    policy = (
        f"default-src 'none'; style-src '{_source(style)}'; img-src data:; script-src '{_source(script)}' blob: "
        "'wasm-unsafe-eval'; base-uri 'none'; form-action 'none'"
    )
    return environment.get_template("template.html").render(content, policy=policy, style=style, script=script)


def _source(text: str) -> str:
    """Name a text inside the page, as a Content-Security-Policy does."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
