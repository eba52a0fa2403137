"""What the README says is so."""

import ast
import re
import subprocess
import sys

from conftest import ROOT

from tools import update_readme

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_table_and_plots_are_those_of_the_committed_notebooks():
    assert update_readme.update(README) == README, "stale: python tools/update_readme.py"
    for name in update_readme.PLOTS:
        assert (ROOT / "docs" / name).read_bytes() == update_readme.plot(name), f"docs/{name} is stale"


def test_use_from_your_own_notebook(project, embedded):
    (snippet,) = re.findall(r"```python\n(.+?)```", README, flags=re.DOTALL)
    *lines, last = snippet.strip().splitlines()
    (project / "mine.py").write_text("\n".join([*lines, f"print({last})"]), encoding="utf-8")
    done = subprocess.run([sys.executable, "mine.py"], cwd=project, capture_output=True, encoding="utf-8")
    assert done.stdout.strip() in {"apple", "cherry", "tomato"}, done.stderr


def test_modules_import_only_what_stands_above_them():
    above = set()
    for name in re.findall(r"^\| `(\w+)` \|", README, flags=re.MULTILINE):
        source = ROOT / "utils" / f"{name}.py"
        if not source.exists():
            continue  # the table of notebooks
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            module = getattr(node, "module", "") or ""
            if module.startswith("utils."):
                assert module.removeprefix("utils.") in above, f"{name} imports {module}, which stands below it"
        above.add(name)


def test_every_module_and_every_file_it_names_exists():
    modules = {path.stem for path in (ROOT / "utils").glob("*.py")} - {"__init__"}
    named = re.findall(r"^\| `(\w+)` \|", README, flags=re.MULTILINE)
    assert modules <= set(named), f"not in the README: {modules - set(named)}"
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / link).exists(), link
