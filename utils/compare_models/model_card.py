"""The model card, written from `report.json` alone, so that it cannot disagree with it."""

from pathlib import Path

import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from utils.config import listing
from utils.files import whole_file
from utils.report import read_report, render


def model_entries(summary: pd.DataFrame, latency: pd.DataFrame, processes: pd.DataFrame) -> dict[str, dict]:
    """Shape the comparison for the report.

    `summary` has a row per model: score, low, high, bytes, file; `latency` is what `latency.summarize` gives,
    `processes` what `latency.measure_latency` found.
    """
    entries = {}
    for name, row in summary.iterrows():
        times = latency[latency["model"] == name].set_index("task")
        times["p50_ci95"] = times[["low", "high"]].to_numpy().tolist()
        times = times[["p50", "p90", "p99", "p50_ci95"]]
        entries[name] = {
            "file": row["file"],
            "macro_f1": row["score"],
            "ci95": [row["low"], row["high"]],
            "bytes": int(row["bytes"]),
            "latency_ms": times.drop("photo").to_dict("index"),
            "photo_to_answer_ms": times.loc["photo"].to_dict(),
            **processes.loc[name].to_dict(),
        }
    return entries


def write_model_card(run: Path) -> None:
    """Write ``MODEL_CARD.md`` of a run, with the metadata that the Hugging Face Hub reads."""
    report = read_report(run)
    name = report.get("train", {}).get("arch") or report["comparison"]["verdict"]["ship"]
    classes = report.get("dataset", {}).get("classes", {})
    text = render("card.md", name=name, classes=classes, report=report)
    metadata = _metadata(name, listing(classes) or "images in folders", report)
    card = ModelCard(f"---\n{metadata.to_yaml()}\n---\n{text}\n")
    with whole_file(run / "MODEL_CARD.md") as temporary:
        card.save(temporary)


def _metadata(name: str, dataset: str, report: dict) -> ModelCardData:
    """Describe what ships: its library, its tags, its scores, first the one to quote."""
    ship = report["comparison"]["verdict"]["ship"]
    scores = {"test": report["comparison"]["models"][ship]["macro_f1"]}
    if "oof_macro_f1" in report.get("train", {}):
        scores = {"all, out of fold": report["train"]["oof_macro_f1"]} | scores
    kind = {"task_type": "image-classification", "dataset_type": "imagefolder", "dataset_name": dataset}
    metric = {"metric_type": "f1", "metric_name": "macro-F1"}
    return ModelCardData(
        library_name="pytorch" if ship == "pytorch" else "onnx",
        pipeline_tag="image-classification",
        tags=["image-classification", "int8"] if ship == "int8" else ["image-classification"],
        metrics=["f1"],
        model_name=name,
        eval_results=[
            EvalResult(dataset_split=split, metric_value=score, **kind, **metric) for split, score in scores.items()
        ],
    )
