"""The model card, its table and its sentences, written from `report.json` alone."""

import json
from pathlib import Path

import pandas as pd

from utils.config import listing
from utils.files import whole_file
from utils.report import read_report


def model_entries(summary: pd.DataFrame, latency: pd.DataFrame, processes: pd.DataFrame) -> dict:
    """Shape the comparison for the report.

    `summary` has a row per model: score, low, high, bytes; `latency` and `processes` are what `utils.latency` gives.
    """
    entries = {}
    for name, row in summary.iterrows():
        times = latency[latency["model"] == name].set_index("task")
        times["p50_ci95"] = list(times[["low", "high"]].to_numpy().tolist())
        times = times[["p50", "p90", "p99", "p50_ci95"]]
        entries[name] = {
            "macro_f1": row["score"],
            "ci95": [row["low"], row["high"]],
            "bytes": int(row["bytes"]),
            "latency_ms": times.drop("photo").to_dict("index"),
            "photo_to_answer_ms": times.loc["photo"].to_dict(),
            **processes.loc[name].to_dict(),
        }
    return entries


def result_table(models: dict) -> str:
    """Write the report's models as a Markdown table."""
    rows = ["| model | test macro-F1 (95 % interval) | kB | ms for one image | from photo to answer | peak MB |"]
    rows.append("|---|---|---|---|---|---|")
    for name, each in models.items():
        score = f"{each['macro_f1']:.3f} ({each['ci95'][0]:.3f} to {each['ci95'][1]:.3f})"
        one = next(iter(each["latency_ms"].values()))
        latency = f"{one['p50']:.2f} ({one['p50_ci95'][0]:.2f} to {one['p50_ci95'][1]:.2f})"
        photo = f"{each['photo_to_answer_ms']['p50']:.2f}"
        rows.append(
            f"| {name} | {score} | {each['bytes'] / 1000:,.0f} | {latency} | {photo} | {each['peak_rss_mb']:.0f} |"
        )
    return "\n".join(rows)


def pair_sentences(pairs: dict) -> str:
    """Say in Markdown what the report's paired comparisons found, a line for each."""
    lines = []
    for where, each in pairs.items():
        low, high = each["macro_f1_delta_ci95"]
        lines.append(
            f"- {where}, {each['images']} images: the same answer on {each['agreement']:.1%} "
            f"({each['agreement_ci95'][0]:.1%} to {each['agreement_ci95'][1]:.1%}), {each['flips']['fixed']} fixed, "
            f"{each['flips']['broken']} broken, McNemar p = {each['mcnemar_p']:.2f}; "
            f"macro-F1 {each['macro_f1_delta']:+.3f} ({low:+.3f} to {high:+.3f})."
        )
    return "\n".join(lines)


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
    return listing(report.get("dataset", {}).get("classes", {})) or "images in folders"


def _title(report: dict) -> str:
    return f"# {_name(report)}: {_data_name(report)}"


def _verdict(report: dict) -> str:
    verdict = report["comparison"]["verdict"]
    return f"**Ship `{verdict['ship']}`**: {verdict['reason']}."


def _data(report: dict) -> str:
    dataset, train = report.get("dataset"), report.get("train")
    if not (dataset and train):
        return ""
    counts = listing(f"{name} {count}" for name, count in dataset["classes"].items())
    low, high = train["oof_macro_f1_ci95"]
    return (
        f"Trained on {dataset['split']['train']} of {dataset['images']} images in {dataset['groups']} groups "
        f"({counts}). Out-of-fold macro-F1 of the recipe {train['oof_macro_f1']:.3f}, 95 % interval "
        f"{low:.3f} to {high:.3f}."
    )


def _evidence(comparison: dict) -> str:
    first, second = comparison["pair"]
    return (
        f"## Evidence\n\n{result_table(comparison['models'])}\n\n{second} against {first}, on the same images, "
        f"with 95 % intervals (models were trained on some of the images, but for those out of fold):\n\n"
        f"{pair_sentences(comparison['pairs'])}"
    )


def _limits(report: dict) -> str:
    series = report.get("dataset", {}).get("series", [])
    caution = (
        f"Training and test images of {listing(series)} show the same object: the scores say little about others."
        if series
        else "The scores hold for images taken as these were."
    )
    machine = report["comparison"]["machine"]
    return f"## Limitations\n\n{caution} Times are those of {machine['name']}, {machine['threads']} threads."
