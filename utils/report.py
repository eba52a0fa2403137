"""report.json and the model card written from it."""

import json
from pathlib import Path

import pandas as pd

from utils.config import whole_file


def read_report(run: Path) -> dict:
    """Read ``report.json`` of a run; empty when there is none yet."""
    path = run / "report.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def update_report(run: Path, section: str, values: dict) -> None:
    """Replace one notebook's section of ``report.json`` and keep the others."""
    report = read_report(run) | {section: values}
    with whole_file(run / "report.json") as temporary:
        temporary.write_text(json.dumps(report, indent=2, ensure_ascii=False, default=float) + "\n", encoding="utf-8")


def model_entries(summary: pd.DataFrame, latency: pd.DataFrame) -> dict:
    """Shape the comparison for the report.

    `summary` has a row per model: score, low, high, bytes, peak_rss_mb; `latency` a row per model and batch: p50, p90,
    p99 in ms.
    """
    entries = {}
    for name, row in summary.iterrows():
        times = latency[latency["model"] == name].set_index("batch")[["p50", "p90", "p99"]]
        entries[name] = {
            "macro_f1": row["score"],
            "ci95": [row["low"], row["high"]],
            "bytes": int(row["bytes"]),
            "latency_ms": times.to_dict("index"),
            "peak_rss_mb": row["peak_rss_mb"],
        }
    return entries


def result_table(models: dict) -> str:
    """Write the report's models as a Markdown table."""
    rows = ["| model | test macro-F1 (95 % interval) | kB | ms for one image |", "|---|---|---|---|"]
    for name, each in models.items():
        score = f"{each['macro_f1']:.3f} ({each['ci95'][0]:.3f} to {each['ci95'][1]:.3f})"
        latency = next(iter(each["latency_ms"].values()))["p50"]
        rows.append(f"| {name} | {score} | {each['bytes'] / 1000:,.0f} | {latency:.2f} |")
    return "\n".join(rows)


def write_model_card(run: Path) -> None:
    """Write ``MODEL_CARD.md`` in the Hugging Face form, from ``report.json`` alone, so the two cannot disagree."""
    report = read_report(run)
    dataset, train, comparison = report["dataset"], report["train"], report["comparison"]
    series = dataset["series"]
    card = f"""---
library_name: onnx
pipeline_tag: image-classification
metrics: [f1]
---
# {train["arch"]}: {", ".join(dataset["classes"])}

**Ship `{comparison["verdict"]["ship"]}`**: {comparison["verdict"]["reason"]}.

Trained on {dataset["split"]["train"]} of {dataset["images"]} images in {dataset["groups"]} groups
({", ".join(f"{name} {count}" for name, count in dataset["classes"].items())}).
Out-of-fold macro-F1 of the recipe {train["oof_macro_f1"]:.3f}, 95 % interval {train["oof_macro_f1_ci95"][0]:.3f} to
{train["oof_macro_f1_ci95"][1]:.3f}.

{result_table(comparison["models"])}

INT8 gives ONNX's answer on {comparison["agreement"]:.1%} of all images; on the test part it fixes
{comparison["flips"]["fixed"]} and breaks {comparison["flips"]["broken"]} (McNemar p = {comparison["mcnemar_p"]:.2f}).

## Limitations

{
        f"Training and test images of {', '.join(series)} show the same object: the scores say little about others."
        if series
        else "The scores hold for images taken as these were."
    } Measured on {comparison["machine"]["name"]}.
"""
    with whole_file(run / "MODEL_CARD.md") as temporary:
        temporary.write_text(card, encoding="utf-8")
