"""report.json, one file per run with a section per notebook, and the templates that put it into words."""

import html
import json
import re
from functools import cache
from pathlib import Path

from utils.config import CHECKPOINTS, InputError, by_reason, listing, relative, require
from utils.files import likely_cause, whole_file

TEMPLATES = Path(__file__).parent / "templates"


def read_report(run: Path) -> dict:
    """Read ``report.json`` of a run; empty when there is none yet. Raises InputError when it is damaged."""
    path = run / "report.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        raise InputError(
            f"{relative(path)} cannot be read: {likely_cause(path)}. Delete it, and run the notebooks again from EDA on"
        ) from None


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


def render(template: str, **values: object) -> str:
    """Fill a template of ``utils/templates``; in HTML every text is escaped, in Markdown what the filter is put on."""
    return environment(template.endswith(".html")).get_template(template).render(values).strip()


@cache
def environment(escape: bool):
    """Give Jinja's environment of the templates; whether it is to `escape` every text, as in HTML."""
    import jinja2  # here: whoever only reads the report need not have it

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "by_reason": by_reason,
        "counts": list_counts,
        "listing": listing,
        "markdown": escape_markdown,
        "size": size_in_words,
    }
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
