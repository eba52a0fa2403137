"""The notebooks as they are committed: executed, clean, and short enough to read."""

import json
import re
from collections import defaultdict

import pytest
from conftest import ROOT

NAMES = ["EDA", "train", "onnx_quant", "compare_models"]


@pytest.fixture(params=NAMES)
def notebook(request) -> dict:
    return json.loads((ROOT / f"{request.param}.ipynb").read_text(encoding="utf-8"))


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def settings_cell(notebook: dict) -> dict:
    (cell,) = [cell for cell in code_cells(notebook) if "parameters" in cell["metadata"].get("tags", [])]
    return cell


def outputs(notebook: dict) -> list[dict]:
    return [output for cell in code_cells(notebook) for output in cell["outputs"]]


def test_executed_from_top_to_bottom(notebook):
    counts = [cell["execution_count"] for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))


def test_outputs_are_clean(notebook):
    kinds = {(output["output_type"], output.get("name")) for output in outputs(notebook)}
    assert not {kind for kind in kinds if "error" in kind or "stderr" in kind}
    text = json.dumps(notebook)
    assert "widget-view" not in text and "widgets" not in notebook["metadata"]
    assert all(output.get("data", True) for output in outputs(notebook)), "the place of a progress bar was kept"
    assert not re.search(r"/(home|root|Users)/|C:\\\\Users", text)


def test_has_plots_and_stays_small(notebook):
    assert sum("image/png" in output.get("data", {}) for output in outputs(notebook)) >= 1
    assert len(json.dumps(notebook)) < 1_500_000
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


def lengths(cells: list[dict]) -> list[int]:
    return sorted(len([line for line in cell["source"] if line.strip()]) for cell in cells)


def test_the_main_line_is_short(notebook):
    """Up to the heading of what supports it: few code cells, half of them of five lines or fewer."""
    cells = notebook["cells"]
    heading = next(number for number, cell in enumerate(cells) if "Further evidence" in "".join(cell["source"]))
    found = lengths([cell for cell in cells[:heading] if cell["cell_type"] == "code"])
    assert len(found) <= 17 and found[len(found) // 2] <= 5 and found[-1] <= 16
    assert lengths(code_cells(notebook))[-1] <= 16


def test_settings_stand_in_one_cell_with_their_reasons(notebook):
    for line in settings_cell(notebook)["source"]:
        assert re.fullmatch(r"[A-Z0-9_]+ = .+  # .+\n?", line), line


def test_a_setting_is_the_same_line_in_every_notebook_that_has_it():
    """Name, default and reason: `run.py -p SETTING=VALUE` reaches all of them, so it must mean one thing."""
    lines = defaultdict(set)
    for name in NAMES:
        notebook = json.loads((ROOT / f"{name}.ipynb").read_text(encoding="utf-8"))
        for line in settings_cell(notebook)["source"]:
            lines[line.split(" = ")[0]].add(line.rstrip("\n"))
    assert not [sorted(versions) for versions in lines.values() if len(versions) > 1]
