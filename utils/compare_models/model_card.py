"""The model card and its table, written from `report.json` alone, so that they cannot disagree with it."""

import html
import re
from pathlib import Path

import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from utils.compare_models.paired_comparison import pair_sentences
from utils.compare_models.runtimes import describe_runtimes
from utils.config import listing
from utils.files import whole_file
from utils.report import read_report

PRIVACY = (
    "The files report to nobody. ONNX Runtime itself, from 1.29 on, reports to Microsoft, on Linux and macOS too: set "
    "`ORT_DISABLE_TELEMETRY=1` before it is imported, wherever you run them."
)


def model_entries(summary: pd.DataFrame, latency: pd.DataFrame, processes: pd.DataFrame) -> dict[str, dict]:
    """Shape the comparison for the report.

    `summary` has a row per model: score, low, high, bytes; `latency` is what `latency.summarize` gives, `processes`
    what `latency.measure_latency` found.
    """
    entries = {}
    for name, row in summary.iterrows():
        times = latency[latency["model"] == name].set_index("task")
        times["p50_ci95"] = times[["low", "high"]].to_numpy().tolist()
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


def result_table(models: dict[str, dict]) -> str:
    """Write the report's models as a Markdown table."""
    rows = ["| model | test macro-F1 (95 % interval) | kB | ms for one image | from photo to answer | peak MB |"]
    rows.append("|---|---|---|---|---|---|")
    for name, model in models.items():
        one_image = next(iter(model["latency_ms"].values()))
        cells = [
            escape_markdown(name),
            _with_interval(model["macro_f1"], model["ci95"], 3),
            f"{model['bytes'] / 1000:,.0f}",
            _with_interval(one_image["p50"], one_image["p50_ci95"], 2),
            f"{model['photo_to_answer_ms']['p50']:.2f}",
            f"{model['peak_rss_mb']:.0f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _with_interval(value: float, interval: list[float], digits: int) -> str:
    low, high = interval
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def escape_markdown(text: str) -> str:
    """Let a text, such as a class's name, stand in Markdown as it is, whatever characters it has."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    # an underscore within a word, as in conv_net, means nothing
    return re.sub(r"[\\`*~$\[\]|]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", escaped)


def write_model_card(run: Path) -> None:
    """Write ``MODEL_CARD.md`` of a run, with the metadata that the Hugging Face Hub reads."""
    report = read_report(run)
    name = report.get("train", {}).get("arch") or report["comparison"]["verdict"]["ship"]
    data_name = listing(report.get("dataset", {}).get("classes", {})) or "images in folders"
    verdict = report["comparison"]["verdict"]
    sections = [
        f"# {escape_markdown(name)}: {escape_markdown(data_name)}",
        f"**Ship `{verdict['ship']}`**: {escape_markdown(verdict['reason'])}.",
        *_data(report),
        _evidence(report["comparison"]),
        _limits(report),
    ]
    card_data = _card_data(name, data_name, report["comparison"])
    card = ModelCard(f"---\n{card_data.to_yaml()}\n---\n" + "\n\n".join(sections) + "\n")
    with whole_file(run / "MODEL_CARD.md") as temporary:
        card.save(temporary)


def _card_data(name: str, data_name: str, comparison: dict) -> ModelCardData:
    """Describe what ships: its library, its tags, its score on the test part."""
    ship = comparison["verdict"]["ship"]
    score = EvalResult(
        task_type="image-classification",
        dataset_type="imagefolder",
        dataset_name=data_name,
        dataset_split="test",
        metric_type="f1",
        metric_name="macro-F1",
        metric_value=comparison["models"][ship]["macro_f1"],
    )
    return ModelCardData(
        library_name="pytorch" if ship == "pytorch" else "onnx",
        pipeline_tag="image-classification",
        tags=["image-classification", "int8"] if ship == "int8" else ["image-classification"],
        metrics=["f1"],
        model_name=name,
        eval_results=[score],
    )


def _data(report: dict) -> list[str]:
    """Say what the model was trained on; nothing, where other people trained it."""
    dataset, train = report.get("dataset"), report.get("train")
    if not (dataset and train):
        return []
    counts = listing(f"{name} {count}" for name, count in dataset["classes"].items())
    low, high = train["oof_macro_f1_ci95"]
    corrected = dataset.get("corrections", {"relabelled": 0, "dropped": 0})
    by_hand = f" {corrected['relabelled']} relabelled, {corrected['dropped']} dropped by hand."
    return [
        f"Trained on {dataset['split']['train']} of {dataset['images']} images in {dataset['groups']} groups "
        f"({escape_markdown(counts)}).{by_hand if any(corrected.values()) else ''} Out-of-fold macro-F1 of the recipe "
        f"{train['oof_macro_f1']:.3f}, 95 % interval {low:.3f} to {high:.3f}."
    ]


def _evidence(comparison: dict) -> str:
    first, second = map(escape_markdown, comparison["pair"])
    return (
        f"## Evidence\n\n{result_table(comparison['models'])}\n\n{second} against {first}, on the same images, "
        f"with 95 % intervals (models were trained on some of the images, but for those out of fold):\n\n"
        f"{pair_sentences(comparison['pairs'])}"
    )


def _limits(report: dict) -> str:
    machine, series = report["comparison"]["machine"], report.get("dataset", {}).get("series", [])
    caution = "The scores hold for images taken as these were."
    if series:
        names = escape_markdown(listing(series))
        caution = f"Training and test images of {names} show the same object: the scores say little about others."
    strangers = _strangers(report.get("train", {}).get("novelty"), report.get("quantization", {}).get("deploy", {}))
    runtimes = describe_runtimes(report["comparison"].get("runtimes", []))
    if hint := report.get("dataset", {}).get("hint"):
        caution = f"{caution} {hint}."
    times = f"Times are those of {machine['name']}, {machine['threads']} threads."
    return f"## Limitations\n\n{caution} {strangers} {runtimes} {times}\n\n## Privacy\n\n{PRIVACY}"


def _strangers(novelty: dict | None, deployed: dict) -> str:
    """Say what becomes of a photo that shows none of the classes."""
    if not novelty:
        return ""
    low, high = novelty["auroc_ci95"]
    told = f"a class kept from training is told with an AUROC of {novelty['auroc']:.2f} ({low:.2f} to {high:.2f})"
    if not deployed.get("novelty"):
        reason = "INT8 does not keep that" if novelty["works"] else "too little, or not sure"
        return f"A photo of anything else is given one of these classes too: {told}, {reason}."
    return (
        f"A photo of anything else may be called `unknown`: {told}, and {novelty['caught']:.0%} of it is caught. "
        f"Of the test photos, {novelty['kept']:.0%} are not called so."
    )
