"""The model card, written from `report.json` alone, so that it cannot disagree with it."""

from datetime import date
from pathlib import Path

import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from utils.config import listing
from utils.files import whole_file
from utils.report import DEPLOYED, read_report, render


def model_entries(summary: pd.DataFrame, latency: pd.DataFrame, processes: pd.DataFrame) -> dict[str, dict]:
    """Shape the comparison for the report.

    `summary` has a row per model: score, low, high, bytes, file; `latency` is what `latency.summarize` gives,
    `processes` what `latency.measure_latency` found.
    """
    latency = latency.assign(p50_ci95=latency[["low", "high"]].to_numpy().tolist())
    entries = {}
    for name, row in summary.iterrows():
        times = latency[latency["model"] == name].set_index("task")[["p50", "p90", "p99", "p50_ci95"]].to_dict("index")
        entries[name] = {
            "file": row["file"],
            "macro_f1": row["score"],
            "ci95": [row["low"], row["high"]],
            "bytes": int(row["bytes"]),
            "photo_to_answer_ms": times.pop("photo"),
            "latency_ms": times,
            **processes.loc[name].to_dict(),
        }
    return entries


def write_model_card(run: Path) -> None:
    """Write ``MODEL_CARD.md`` of a run, with the metadata that the Hugging Face Hub reads."""
    report = read_report(run)
    ship, train = report["comparison"]["verdict"]["ship"], report.get("train", {})
    name, classes = train.get("arch") or ship, report.get("dataset", {}).get("classes", {})
    deployed = [run / f"{name}{kind}_deploy.onnx" for kind in ("", "_int8")]
    files = {path.name: path.stat().st_size for path in deployed if path.exists()}
    use = f"{name}{DEPLOYED.get(ship)}"
    text = render(
        "card.md",
        report=report,
        name=name,
        classes=classes,
        deployed=files,
        use=use if use in files else None,
        vague=_least_known(train.get("oof_per_class")),
        made=date.today().isoformat(),
    )
    score = EvalResult(  # the one to quote: out of fold, if there are folds
        task_type="image-classification",
        dataset_type="imagefolder",
        dataset_name=listing(classes) or "images in folders",
        dataset_split="all, out of fold" if "oof_macro_f1" in train else "test",
        metric_type="f1",
        metric_name="macro-F1",
        metric_value=round(train.get("oof_macro_f1", report["comparison"]["models"][ship]["macro_f1"]), 4),
    )
    metadata = ModelCardData(
        library_name="pytorch" if ship == "pytorch" else "onnx",
        pipeline_tag="image-classification",
        tags=["image-classification", "int8"] if ship == "int8" else ["image-classification"],
        metrics=["f1"],
        model_name=name,
        eval_results=[score],
    )
    with whole_file(run / "MODEL_CARD.md") as temporary:
        ModelCard(f"---\n{metadata.to_yaml()}\n---\n{text}\n").save(temporary)


def _least_known(by_class: dict[str, dict] | None) -> dict | None:
    """Describe the class whose recall is known least, as the page does: how many of 100 photos are predicted right."""
    if not by_class:
        return None
    name, row = max(by_class.items(), key=lambda item: item[1]["recall high"] - item[1]["recall low"])
    ends = {end: round(100 * row[f"recall {end}"]) for end in ("low", "high")}
    return {"name": name, "images": row["images"], "groups": row["groups"]} | ends
