"""Copy what was found, and a plot, from the executed notebooks into the README: python tools/update_readme.py."""

import base64
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLOTS = {"trade_off.png": ("compare_models", "trade-off")}


def output(notebook: str, tag: str, kind: str) -> str:
    """Return the last output of a kind, such as ``text/markdown``, of the cell with this tag."""
    cells = json.loads((ROOT / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    tagged = [cell for cell in cells if tag in cell["metadata"].get("tags", [])]
    found = [shown["data"][kind] for cell in tagged for shown in cell["outputs"] if kind in shown.get("data", {})]
    if not found:
        raise SystemExit(f"{notebook}.ipynb has no cell tagged {tag} with an output of {kind}: run it and save it")
    return "".join(found[-1])


def results() -> str:
    """Return the Markdown table and the verdict of compare_models.ipynb."""
    verdict = output("compare_models", "verdict", "text/markdown").removeprefix("### ").rstrip(".")
    return f"{output('compare_models', 'result-table', 'text/markdown')}\n\n{verdict}."


def plot(name: str) -> bytes:
    """Return a plot of the README as the notebook shows it."""
    notebook, tag = PLOTS[name]
    return base64.b64decode(output(notebook, tag, "image/png"))


def update(readme: str) -> str:
    """Put each text between its two marks."""
    takeaways, _, _ = output("train", "takeaways", "text/markdown").partition("\n\nNext:")
    texts = {"results": results(), "training": takeaways}
    for name, text in texts.items():
        mark, end = f"<!-- {name} -->\n", "<!-- end -->"
        before, _, rest = readme.partition(mark)
        _, _, after = rest.partition(end)
        readme = f"{before}{mark}{text}\n{end}{after}"
    return readme


def main() -> None:
    """Rewrite README.md and docs/."""
    path = ROOT / "README.md"
    path.write_text(update(path.read_text(encoding="utf-8")), encoding="utf-8")
    for name in PLOTS:
        (ROOT / "docs" / name).write_bytes(plot(name))


if __name__ == "__main__":
    main()
