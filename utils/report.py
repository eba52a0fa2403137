"""report.json, one file per run with a section per notebook, and the templates that put it into words."""

import html
import json
import re
from functools import cache
from pathlib import Path

from utils.config import CHECKPOINTS, InputError, by_reason, listing, relative, require
from utils.files import likely_cause, whole_file

TEMPLATES = Path(__file__).parent / "templates"
DEPLOYED = {"int8": "_int8_deploy.onnx", "onnx": "_deploy.onnx", "pytorch": "_deploy.onnx"}  # by what the verdict ships


def read_report(run: Path) -> dict:
    """Read ``report.json`` of a run; empty when there is none yet. Raises InputError when it is damaged."""
    path = run / "report.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        cause = f"{relative(path)} cannot be read: {likely_cause(path)}"
        raise InputError(f"{cause}. Delete it, and run the notebooks again from EDA on") from None


def check_folder(run: Path, folder: Path) -> str:
    """Raise InputError when a run holds the results of another folder, which it would replace; → this one's name.

    What lies in ``checkpoints`` itself are the example's, or those of nobody who gave a name.
    """
    place = relative(folder.resolve()).encode(errors="backslashreplace").decode()
    known = read_report(run).get("dataset", {}).get("folder", place)
    require(
        run == CHECKPOINTS or known == place,
        f"{relative(run)} holds the results of {known}, not of {place}: give this run a name of its own (--name; NAME "
        f"in Jupyter). If the folder was only moved, remove {relative(run / 'report.json')}",
    )
    return place


def update_report(run: Path, section: str, values: dict) -> None:
    """Replace one notebook's section of ``report.json`` and keep the others."""
    report = read_report(run) | {section: values}
    with whole_file(run / "report.json") as temporary:
        temporary.write_text(json.dumps(report, indent=2, ensure_ascii=False, default=float) + "\n", encoding="utf-8")


def extend_report(run: Path, section: str, values: dict) -> None:
    """Add what a notebook found later, as its further evidence, to its section of ``report.json``."""
    update_report(run, section, read_report(run).get(section, {}) | values)


def chosen_arch(run: Path, arch: str | None) -> str:
    """Return `arch` or, if it is None or "auto", the network that EDA went on with; InputError if there is none."""
    if arch not in (None, "auto"):
        return arch
    chosen = read_report(run).get("dataset", {}).get("arch")
    require(chosen, f"{relative(run)} holds no network that EDA.ipynb chose: run EDA.ipynb first")
    return chosen


def shipped_file(run: str | Path = "") -> Path:
    """Find the file for photos that a run's verdict ships, by the run's name or folder; InputError if there is none."""
    folder = CHECKPOINTS / run
    report = read_report(folder)
    verdict = report.get("comparison", {}).get("verdict")
    if not verdict:
        runs = sorted(path.parent.name for path in CHECKPOINTS.glob("*/report.json"))
        raise InputError(
            f"{relative(folder)} holds no verdict: run the four notebooks first. Named runs: {listing(runs) or 'none'}"
        )
    ship = verdict["ship"]
    require(ship in DEPLOYED, f"{relative(folder)} ships {ship}, of which there is no file that takes photos")
    return folder / f"{report['train']['arch']}{DEPLOYED[ship]}"


def render(template: str, **values: object) -> str:
    """Fill a template of ``utils/templates``; in HTML every text is escaped, in Markdown what the filter is put on."""
    return environment(template.endswith(".html")).get_template(template).render(values).strip()


@cache
def environment(escape: bool):
    """Make Jinja's environment of the templates; whether it is to `escape` every text, as in HTML."""
    import jinja2  # here: whoever only reads the report need not have it

    loader, strict = jinja2.FileSystemLoader(TEMPLATES), jinja2.StrictUndefined
    made = jinja2.Environment(loader=loader, autoescape=escape, undefined=strict, trim_blocks=True, lstrip_blocks=True)
    filters = {"counts": list_counts, "markdown": escape_markdown, "size": size_in_words}
    made.filters |= filters | {"by_reason": by_reason, "listing": listing}
    return made


def escape_markdown(text: str) -> str:
    """Let a text, such as a class's name, stand in Markdown as it is, whatever characters it has."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    # an underscore within a word, as in conv_net, means nothing
    return re.sub(r"[\\`*~$\[\]|]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", escaped)


def list_counts(counts: dict[str, int]) -> str:
    """Write names with their numbers in a row; of many, the first ones."""
    return listing(f"{name} {count}" for name, count in counts.items())


def size_in_words(count: int) -> str:
    """Write a number of bytes as people read it."""
    if count >= 1e6:
        return f"{count / 1e6:.1f}\N{NO-BREAK SPACE}MB"
    return f"{count / 1e3:.0f}\N{NO-BREAK SPACE}kB"
