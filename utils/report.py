"""report.json: one file per run, a section per notebook."""

import json
from pathlib import Path

from utils.config import InputError, relative
from utils.files import likely_cause, whole_file


def read_report(run: Path) -> dict:
    """Read ``report.json`` of a run; empty when there is none yet. Raises InputError when it is damaged."""
    path = run / "report.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        raise InputError(
            f"{relative(path)} cannot be read: {likely_cause(path)}. Delete it, and run the notebooks again from EDA on"
        ) from None


def update_report(run: Path, section: str, values: dict) -> None:
    """Replace one notebook's section of ``report.json`` and keep the others."""
    report = read_report(run)
    report[section] = values
    _write(run, report)


def extend_report(run: Path, section: str, values: dict) -> None:
    """Add what a notebook found later, as its further evidence, to its section of ``report.json``."""
    report = read_report(run)
    report.setdefault(section, {}).update(values)
    _write(run, report)


def chosen_arch(run: Path, arch: str | None) -> str:
    """Return the network that EDA went on with if `arch` is None or "auto", and `arch` otherwise.

    Raises InputError when EDA has not chosen any.
    """
    if arch not in (None, "auto"):
        return arch
    chosen = read_report(run).get("dataset", {}).get("arch")
    if not chosen:
        raise InputError(f"{relative(run)} holds no network that EDA.ipynb chose: run EDA.ipynb first")
    return chosen


def _write(run: Path, report: dict) -> None:
    with whole_file(run / "report.json") as temporary:
        temporary.write_text(json.dumps(report, indent=2, ensure_ascii=False, default=float) + "\n", encoding="utf-8")
