"""The report as tables for experts: caption → rows of text, the first one the columns' names."""

from collections.abc import Sequence


def expert_tables(report: dict) -> dict[str, list[list[str]]]:
    """Make a table of what each notebook found; what the report lacks is left out."""
    comparison, train = report["comparison"], report.get("train", {})
    tables = {
        "Macro-F1": _scores(report),
        "Classes, on the test part": _classes(train.get("per_class", {})),
        "Files, on the test part": _models(comparison["models"]),
        f"{comparison['pair'][1]} against {comparison['pair'][0]}": _pairs(comparison["pairs"]),
        "Runtimes": _runtimes(comparison.get("runtimes", [])),
        "Settings and machine": _details(report),
    }
    return {caption: rows for caption, rows in tables.items() if len(rows) > 1}


def interval(value: float, ends: Sequence[float], digits: int = 3) -> str:
    """Write a value with its interval."""
    return f"{value:.{digits}f} ({ends[0]:.{digits}f} to {ends[1]:.{digits}f})"


def _scores(report: dict) -> list[list[str]]:
    train, separability = report.get("train", {}), report.get("dataset", {}).get("separability")
    rows = [["", "macro-F1 (95 % interval)"]]
    for name, key in (("out of fold", "oof_macro_f1"), ("test part", "test_macro_f1")):
        if key in train:
            rows.append([name, interval(train[key], train[f"{key}_ci95"])])
    if separability:
        rows.append(["linear classifier on frozen features", interval(separability["macro_f1"], separability["ci95"])])
    return rows


def _classes(per_class: dict) -> list[list[str]]:
    columns = ["precision", "recall", "f1"]
    rows = [[name, *[f"{scores[column]:.3f}" for column in columns]] for name, scores in per_class.items()]
    return [["class", *columns], *rows]


def _models(models: dict) -> list[list[str]]:
    rows = [["file", "macro-F1", "bytes", "ms, batch 1: p50", "p90", "p99", "peak MB"]]
    for name, model in models.items():
        times = next(iter(model["latency_ms"].values()))
        milliseconds = [f"{times[quantile]:.2f}" for quantile in ("p50", "p90", "p99")]
        score, size, memory = interval(model["macro_f1"], model["ci95"]), model["bytes"], model["peak_rss_mb"]
        rows.append([name, score, f"{size:,}", *milliseconds, f"{memory:.0f}"])
    return rows


def _pairs(pairs: dict) -> list[list[str]]:
    rows = [["", "images", "same answer", "fixed", "broken", "McNemar p", "macro-F1 difference"]]
    for where, pair in pairs.items():
        flips = [str(pair["flips"][name]) for name in ("fixed", "broken")]
        agreement = f"{pair['agreement']:.1%}"
        difference = interval(pair["macro_f1_delta"], pair["macro_f1_delta_ci95"])
        rows.append([where, str(pair["images"]), agreement, *flips, f"{pair['mcnemar_p']:.3f}", difference])
    return rows


def _runtimes(runtimes: list[dict]) -> list[list[str]]:
    rows = [["runtime", "file", "same answer", "SQNR, dB"]]
    for row in runtimes:
        rows.append([row["runtime"], row["file"], f"{row['agreement']:.1%}", f"{row['sqnr_db']:.1f}"])
    return rows


def _details(report: dict) -> list[list[str]]:
    dataset, train, quantization = (report.get(name, {}) for name in ("dataset", "train", "quantization"))
    machine = report["comparison"]["machine"]
    details = {
        "network": train.get("arch"),
        "images, groups": [dataset.get("images"), dataset.get("groups")],
        "split": [f"{part} {count}" for part, count in dataset.get("split", {}).items()],
        "INT8 recipe": quantization.get("recipe"),
        "largest difference of logits, ONNX and PyTorch": quantization.get("parity_max_abs_diff"),
        "temperature": train.get("confidence", {}).get("temperature"),
        "unsure below": train.get("confidence", {}).get("abstain_below"),
        "machine": [machine[name] for name in ("name", "system", "threads") if machine.get(name)],
        "onnxruntime": machine.get("onnxruntime"),
    }
    return [
        ["", ""],
        *[[name, _text(value)] for name, value in details.items() if value not in (None, [], [None, None])],
    ]


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.2g}" if isinstance(value, float) else str(value)
