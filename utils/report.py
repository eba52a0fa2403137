"""report.json and the model card written from it."""

import json
from pathlib import Path

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
