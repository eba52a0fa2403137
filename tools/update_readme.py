"""Copy what was found from the executed notebooks into the README: python tools/update_readme.py."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def output(notebook: str, tag: str) -> str:
    """Return the last Markdown that the cell with this tag has shown."""
    cells = json.loads((ROOT / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    tagged = [cell for cell in cells if tag in cell["metadata"].get("tags", [])]
    shown = [output.get("data", {}) for cell in tagged for output in cell["outputs"]]
    found = [data["text/markdown"] for data in shown if "text/markdown" in data]
    if not found:
        raise SystemExit(f"{notebook}.ipynb has no cell tagged {tag} that shows Markdown: run it and save it")
    return "".join(found[-1])


def results() -> str:
    """Return the Markdown table and the verdict of compare_models.ipynb."""
    verdict = output("compare_models", "verdict").removeprefix("### ").rstrip(".")
    return f"{output('compare_models', 'result-table')}\n\n{verdict}."


def update(readme: str) -> str:
    """Put each text between its two marks."""
    takeaways, _, _ = output("train", "takeaways").partition("\n\nNext:")
    texts = {"results": results(), "training": takeaways}
    for name, text in texts.items():
        mark, end = f"<!-- {name} -->\n", "<!-- end -->"
        before, _, rest = readme.partition(mark)
        _, _, after = rest.partition(end)
        readme = f"{before}{mark}{text}\n{end}{after}"
    return readme


def main() -> None:
    """Rewrite README.md."""
    path = ROOT / "README.md"
    path.write_text(update(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
