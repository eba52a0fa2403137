"""What holds on other systems too: the lock, encodings, no shell, no fork."""

import ast
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

SOURCES = [ROOT / "run.py", *sorted(ROOT.glob("utils/**/*.py")), *sorted(ROOT.glob("tools/*.py"))]
OPENING = {"open", "read_text", "write_text"}


def calls(source) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]


def name(call: ast.Call) -> str:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def test_the_lock_is_what_requirements_in_leads_to_on_three_systems(tmp_path):
    """Newer releases do not change it: what is pinned stays as long as it satisfies requirements.in."""
    lock = shutil.copy(ROOT / "requirements.txt", tmp_path)
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    words = lines[1].removeprefix("#").split()  # the command that made it
    assert words[:3] == ["uv", "pip", "compile"] and "requirements.in" in words
    words = [lock if word == "requirements.txt" else word for word in words]
    subprocess.run([sys.executable, "-m", *words, "--quiet", "--no-header"], cwd=ROOT, check=True)
    compiled = (tmp_path / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        line for line in compiled if not line.startswith("#")
    ]
    for system in ("win32", "darwin"):
        assert any(f"sys_platform == '{system}'" in line for line in compiled), f"nothing is special about {system}?"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_text_files_are_opened_as_utf_8(source):
    for call in calls(source):
        words = {keyword.arg for keyword in call.keywords}
        mode = [each.value for each in call.args if isinstance(each, ast.Constant)]
        binary = any(isinstance(each, str) and "b" in each and len(each) < 4 for each in mode)
        named = getattr(getattr(call.func, "value", None), "id", "")
        if name(call) in OPENING and not binary and named not in {"Image", "tarfile", "webbrowser"}:
            assert "encoding" in words, f"{source.name}, line {call.lineno}: the system decides the encoding"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_shell_no_link_no_fork(source):
    for call in calls(source):
        assert not any(keyword.arg == "shell" for keyword in call.keywords), f"{source.name}, line {call.lineno}"
        assert name(call) not in {"system", "symlink_to", "symlink", "fork"}, f"{source.name}, line {call.lineno}"
