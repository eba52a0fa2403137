"""The model card: MODEL_CARD.md in the Hugging Face form, written from report.json alone."""

import json
from pathlib import Path

from utils.config import whole_file
from utils.report import pair_sentences, read_report, result_table


def write_model_card(run: Path) -> None:
    """Write ``MODEL_CARD.md`` of a run; every number comes from its ``report.json``, so the two cannot disagree."""
    report = read_report(run)
    parts = [_title(report), _verdict(report), _data(report), _evidence(report["comparison"]), _limits(report)]
    card = f"---\n{front_matter(report)}\n---\n" + "\n\n".join(part for part in parts if part) + "\n"
    with whole_file(run / "MODEL_CARD.md") as temporary:
        temporary.write_text(card, encoding="utf-8")


def front_matter(report: dict) -> str:
    """Write the card's metadata as the Hub reads it, the test score of what ships as its ``model-index``.

    Each line is ``name: JSON``, which YAML reads as well, whatever letters a class name has.
    """
    comparison = report["comparison"]
    ships = comparison["models"][comparison["verdict"]["ship"]]
    values = {
        "library_name": "pytorch" if comparison["verdict"]["ship"] == "pytorch" else "onnx",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", *(["int8"] if comparison["verdict"]["ship"] == "int8" else [])],
        "metrics": ["f1"],
        "model-index": [
            {
                "name": _name(report),
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {"type": "imagefolder", "name": _data_name(report), "split": "test"},
                        "metrics": [{"type": "f1", "name": "macro-F1", "value": ships["macro_f1"]}],
                    }
                ],
            }
        ],
    }
    return "\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in values.items())


def _name(report: dict) -> str:
    return report.get("train", {}).get("arch") or report["comparison"]["verdict"]["ship"]


def _data_name(report: dict) -> str:
    return ", ".join(report.get("dataset", {}).get("classes", {})) or "images in folders"


def _title(report: dict) -> str:
    return f"# {_name(report)}: {_data_name(report)}"


def _verdict(report: dict) -> str:
    verdict = report["comparison"]["verdict"]
    return f"**Ship `{verdict['ship']}`**: {verdict['reason']}."


def _data(report: dict) -> str:
    dataset, train = report.get("dataset"), report.get("train")
    if not (dataset and train):
        return ""
    counts = ", ".join(f"{name} {count}" for name, count in dataset["classes"].items())
    low, high = train["oof_macro_f1_ci95"]
    return (
        f"Trained on {dataset['split']['train']} of {dataset['images']} images in {dataset['groups']} groups ({counts}). "
        f"Out-of-fold macro-F1 of the recipe {train['oof_macro_f1']:.3f}, 95 % interval {low:.3f} to {high:.3f}."
    )


def _evidence(comparison: dict) -> str:
    first, second = comparison["pair"]
    return (
        f"## Evidence\n\n{result_table(comparison['models'])}\n\n{second} against {first}, on the same images, with 95 % "
        f"intervals (all of them unseen only where it says out of fold):\n\n{pair_sentences(comparison['pairs'])}"
    )


def _limits(report: dict) -> str:
    series = report.get("dataset", {}).get("series", [])
    caution = (
        f"Training and test images of {', '.join(series)} show the same object: the scores say little about others."
        if series
        else "The scores hold for images taken as these were."
    )
    machine = report["comparison"]["machine"]
    return f"## Limitations\n\n{caution} Times are those of {machine['name']}, {machine['threads']} threads."
