"""The house: a room per notebook, and common ground that imports from none of them."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

UTILS = ROOT / "utils"
NOTEBOOKS = {"eda": "EDA", "train": "train", "onnx_quant": "onnx_quant", "compare_models": "compare_models"}
MODULES = sorted(UTILS.rglob("*.py"))
LARGE = {"torch", "pandas", "scipy", "sklearn"}
SLOW = {"torchvision", "timm", "torch._dynamo"}  # a second or more each


def imported(source: str) -> set[str]:
    """List the modules that Python code imports, wherever the import stands; `from a import b` may import a.b."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def rooms_of(source: str) -> set[str]:
    """List the rooms that Python code imports from."""
    return {room for room in NOTEBOOKS for name in imported(source) if f"{name}.".startswith(f"utils.{room}.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(UTILS).as_posix())
def test_module_imports_from_common_ground_and_its_own_room_alone(path: Path):
    own = {path.parent.name} & set(NOTEBOOKS)
    assert rooms_of(path.read_text(encoding="utf-8")) <= own


@pytest.mark.parametrize("room", NOTEBOOKS)
def test_notebook_uses_its_own_room_alone(room: str):
    notebook = json.loads((ROOT / f"{NOTEBOOKS[room]}.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert set.union(*map(rooms_of, cells)) <= {room}


def test_packages_hold_a_docstring_only_and_common_ground_stays_small():
    packages = [UTILS, *(UTILS / room for room in NOTEBOOKS)]
    assert sorted(path.parent for path in UTILS.rglob("__init__.py")) == sorted(packages)
    for package in packages:
        docstring, *others = ast.parse((package / "__init__.py").read_text(encoding="utf-8")).body
        assert isinstance(docstring, ast.Expr) and isinstance(docstring.value.value, str)
        assert not others or package == UTILS, "only utils itself does something: it switches telemetry off"
    assert len(list(UTILS.glob("*.py"))) - 1 <= 20


def import_cell(name: str) -> str:
    """Return the code of a notebook's first cell with code."""
    notebook = json.loads((ROOT / f"{name}.ipynb").read_text(encoding="utf-8"))
    return next("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import utils.predict", LARGE),
        ("import utils.compare_models.latency", LARGE),
        (f"{import_cell('EDA')}\nconfig.seed_everything()", {"onnxruntime", "onnx", *SLOW}),
        (import_cell("train"), {"onnxruntime", "onnx", "timm"}),
        (import_cell("onnx_quant"), SLOW),
        (import_cell("compare_models"), SLOW),
    ],
    ids=["predict", "latency", *NOTEBOOKS.values()],
)
def test_heavy_libraries_are_imported_only_where_they_are_needed(code: str, absent: set[str]):
    code = f"{code}\nimport sys\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    assert not absent & set(loaded.stdout.split())
