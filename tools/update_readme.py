"""Copy the result table and two plots from the executed notebooks into the README: python tools/update_readme.py."""

import base64
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLOTS = {"grad_cam.png": ("train", "## After"), "trade_off.png": ("compare_models", "## Trade-off")}


def outputs_below(notebook: str, heading: str) -> list[dict]:
    """List the outputs of a notebook's section that starts with `heading`."""
    cells = json.loads((ROOT / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs, inside = [], False
    for cell in cells:
        if cell["cell_type"] == "markdown" and "".join(cell["source"]).startswith("## "):
            inside = "".join(cell["source"]).startswith(heading)
        elif inside:
            outputs += cell.get("outputs", [])
    return [output["data"] for output in outputs if "data" in output]


def result_table() -> str:
    """Return the Markdown table and the verdict that compare_models.ipynb ends with."""
    texts = ["".join(data.get("text/markdown", "")) for data in outputs_below("compare_models", "## Verdict")]
    table = next(text for text in texts if text.startswith("| model"))
    verdict = next(text for text in texts if text.startswith("### Ship")).removeprefix("### ")
    return f"{table}\n\n{verdict}."


def out_of_fold() -> str:
    """Return the sentence that train.ipynb prints after its cross-validation."""
    texts = [
        "".join(data.get("text/markdown", "")) for data in outputs_below("train", "## The same recipe on every image")
    ]
    return next(text for text in texts if text.startswith("Macro-F1"))


def plot(name: str) -> bytes:
    """Return a plot of the README as the notebook shows it."""
    images = [data["image/png"] for data in outputs_below(*PLOTS[name]) if "image/png" in data]
    return base64.b64decode("".join(images[-1]))


def update(readme: str) -> str:
    """Put each text between its two marks."""
    for mark, text in {"results": result_table(), "out of fold": out_of_fold()}.items():
        readme = re.sub(rf"(<!-- {mark} -->\n).*?(<!-- end -->)", rf"\g<1>{text}\n\g<2>", readme, flags=re.DOTALL)
    return readme


def main() -> None:
    """Rewrite README.md and docs/."""
    path = ROOT / "README.md"
    path.write_text(update(path.read_text(encoding="utf-8")), encoding="utf-8")
    for name in PLOTS:
        (ROOT / "docs" / name).write_bytes(plot(name))


if __name__ == "__main__":
    main()
