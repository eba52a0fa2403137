"""What the README and docs/ say is so."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from tools import update_readme

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_table_and_findings_are_those_of_the_committed_notebooks():
    assert update_readme.update(README) == README, "stale: python tools/update_readme.py"


def write_notebook(path: Path, *tags: str) -> None:
    """Write a notebook whose tagged cells say their tags, below a heading of any name."""
    cells = [{"cell_type": "markdown", "metadata": {}, "source": "## Anything"}]
    for tag in tags:
        outputs = [{"output_type": "stream", "text": "noise"}, {"data": {"text/markdown": f"### {tag} \\1"}}]
        cells.append({"cell_type": "code", "metadata": {"tags": [tag]}, "outputs": outputs})
    path.write_text(json.dumps({"cells": cells}), encoding="utf-8")


def test_marks_are_filled_from_tagged_cells_whatever_the_headings_say(tmp_path, monkeypatch):
    write_notebook(tmp_path / "train.ipynb", "takeaways")
    write_notebook(tmp_path / "compare_models.ipynb", "verdict", "result-table")
    monkeypatch.setattr(update_readme, "ROOT", tmp_path)
    before = "a\n<!-- results -->\nold\n<!-- end -->\nb\n<!-- training -->\nold\n<!-- end -->\nc\n"
    assert update_readme.update(before) == (
        "a\n<!-- results -->\n### result-table \\1\n\nverdict \\1.\n<!-- end -->\nb\n"
        "<!-- training -->\n### takeaways \\1\n<!-- end -->\nc\n"
    )
    write_notebook(tmp_path / "compare_models.ipynb", "verdict")
    with pytest.raises(SystemExit, match="compare_models.ipynb has no cell tagged result-table"):
        update_readme.update(before)


def test_use_from_your_own_notebook(project, embedded):
    text = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.+?)```", text, flags=re.DOTALL)
    *lines, last = snippet.strip().splitlines()
    (project / "mine.py").write_text("\n".join([*lines, f"print({last})"]), encoding="utf-8")
    done = subprocess.run([sys.executable, "mine.py"], cwd=project, capture_output=True, encoding="utf-8")
    assert done.stdout.strip() in {"apple", "cherry", "tomato"}, done.stderr


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_every_file_it_names_exists(page):
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", (ROOT / page).read_text(encoding="utf-8")):
        assert ((ROOT / page).parent / link).exists(), link
