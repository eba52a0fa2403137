"""run.py when something is wrong: one sentence that names the thing and the next step."""

import ast
import shutil
import subprocess
import venv
from pathlib import Path

import pytest
from conftest import ROOT, copy_project, fill_folder, run_py
from nbclient.exceptions import CellExecutionError

import run


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--data", "no/such/folder"], "--data no/such/folder: no such folder. Give one that holds a folder of images"),
        (["--data", ".", "--name", "../elsewhere"], "--name ../elsewhere: a plain name is needed"),
        (["--name", ".."], "--name ..: a plain name is needed"),
        (["-p", "NAME=a/b"], "--name a/b: a plain name is needed"),
        (["-p", "RESUME"], "-p RESUME: expected SETTING=VALUE"),
        (["--allow-root"], "unrecognized arguments: --allow-root"),
        (["-p", "EPOCH=5"], "no notebook has a setting EPOCH. There are ACCURACY, AGREEMENT"),
        (["--name", "conv_net.pth"], "checkpoints/conv_net.pth is a file: give this run another name (--name"),
        (["--labels", "no.csv"], "--labels goes with --data, the folder of the images"),
        (["--data", ".", "--labels", "no.csv"], "--labels no.csv: no such file. Give a table with columns of file"),
    ],
)
def test_option_that_makes_no_sense(project, arguments, sentence):
    done = run_py(project, *arguments)
    assert done.returncode != 0
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "arch"),
    [
        (["--data", ".", "--quick"], run.QUICK_ARCH),
        (["--data", ".", "--quick", "--arch", "auto"], "auto"),
        (["--data", ".", "--quick", "-p", "BUDGET_MS=2"], None),
        (["--quick"], None),
        (["--data", "."], None),
    ],
)
def test_quick_run_of_own_photos_goes_without_a_choice_of_networks_unless_one_is_asked_for(monkeypatch, options, arch):
    monkeypatch.setattr("sys.argv", ["run.py", *options])
    assert run.read_settings(run.parse_arguments()).get("ARCH") == arch


def test_folder_stands_in_a_notebook_as_it_was_typed_or_below_the_project(tmp_path, monkeypatch):
    monkeypatch.chdir(run.ROOT)
    for typed, written in {
        "data/train": "data/train",
        str(run.ROOT / "data" / "train"): "data/train",
        "../photos": str(Path("../photos")),
        str(tmp_path): str(tmp_path),
    }.items():
        assert run.as_typed(Path(typed)) == written
    monkeypatch.chdir(tmp_path)
    assert run.as_typed(Path("photos")) == str(tmp_path.resolve() / "photos"), "notebooks start in the project"


def test_error_of_a_cell_is_shown_in_full_without_colors_and_says_what_it_means():
    error = CellExecutionError("x = 1 / 0\n\x1b[31mZeroDivisionError\x1b[39m: by zero", "ZeroDivisionError", "by zero")
    said = run.describe(error, run.ROOT / "runs" / "mine" / "train.ipynb")
    assert "x = 1 / 0\nZeroDivisionError: by zero\n" in said
    assert "train.ipynb stopped at the cell above" in said
    assert f"{Path('runs/mine/train.ipynb')} shows how far it came" in " ".join(said.split())


def test_lab_takes_the_options_of_jupyterlab(project):
    done = run_py(project, "lab", "--version")
    assert done.returncode == 0 and done.stdout.startswith("4."), done.stderr


def test_empty_class_stops_before_training_and_lists_all_bad_files(project, tmp_path):
    data = fill_folder(tmp_path / "data", {"apple": 6, "plum": 1})
    (data / "plum" / "000.jpg").write_bytes(b"")
    (data / "apple" / "page.jpg").write_text("<!doctype html>")
    done = run_py(project, "--data", str(data), "--name", "empty_class")
    assert done.returncode == 1
    assert "class folder plum has no readable image" in done.stderr
    assert "plum/000.jpg: not an image; it is empty" in done.stderr
    assert "apple/page.jpg: not an image; it is a web page" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project / "checkpoints" / "empty_class" / "split.csv").exists()


def test_name_of_another_folder_stops_before_the_first_notebook(project, tmp_path):
    place = project / "checkpoints" / "photos"
    place.mkdir()
    (place / "report.json").write_text('{"dataset": {"folder": "/elsewhere/photos"}}', encoding="utf-8")
    (tmp_path / "photos").mkdir()
    done = run_py(project, "--data", str(tmp_path / "photos"))
    assert done.returncode == 1 and done.stdout == ""
    assert "checkpoints/photos holds the results of /elsewhere/photos, not of" in done.stderr
    assert "give this run a name of its own (--name" in done.stderr and "Traceback" not in done.stderr


def test_project_that_cannot_be_written_to_is_named(tmp_path):
    project = copy_project(tmp_path / "project")
    (project / "runs").write_bytes(b"")  # as hard to write into as a folder that is read-only, for the superuser, too
    done = run_py(project, "--name", "a")
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    assert "runs/a cannot be written to (Not a directory): copy the project to where you may write" in done.stderr


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
def test_damaged_pretrained_weights(tmp_path, damage):
    project = copy_project(tmp_path / "project")
    path = project / "checkpoints" / "conv_net.pth"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    {
        "missing": path.unlink,
        "cut": lambda: path.write_bytes(content[:5000]),
        "flipped": lambda: path.write_bytes(content),
    }[damage]()
    done = run_py(project)
    assert done.returncode == 1
    assert "checkpoints/conv_net.pth" in done.stderr
    assert "git checkout checkpoints/conv_net.pth" in done.stderr
    assert "Traceback" not in done.stderr


def test_settings_that_make_no_sense_are_named_at_once(project):
    done = run_py(project, "--name", "settings", "-p", "SEED='seven'", "-p", "BUDGET_MS=abc")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "SEED is 'seven': it must be a whole number, 0 or more" in done.stderr
    assert "BUDGET_MS is 'abc': it must be a number above 0, or None" in done.stderr


@pytest.mark.parametrize(
    ("command", "package"), [("run", "nbclient"), ("page", "jinja2"), ("lab", "jupyterlab"), ("test", "pytest")]
)
def test_python_without_the_packages(project, tmp_path, command, package):
    venv.create(tmp_path / "bare", with_pip=False)
    python = tmp_path / "bare" / run.VENV_PYTHON.relative_to(run.VENV)
    call = [python, project / "run.py", "--no-venv", command]
    done = subprocess.run(call, capture_output=True, encoding="utf-8")
    assert done.returncode == 1
    assert f"{package} is not installed for this Python: leave out --no-venv" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_older_python_is_told_that_it_is_too_old():
    """Also one that knows neither `list[str]` nor `str | None`: nothing before the check may need a newer one."""
    tree = ast.parse((ROOT / "run.py").read_text(encoding="utf-8"), feature_version=(3, 8))
    imports = [statement for statement in tree.body if isinstance(statement, ast.Import | ast.ImportFrom)]
    assert imports[0].module == "__future__" and imports[0].names[0].name == "annotations"
    assert not {name.name for statement in imports for name in statement.names} & {"graphlib", "tomllib", "zoneinfo"}
    for python in filter(shutil.which, ["python3.8", "python3.9", "python3.10"]):
        if subprocess.run([python, "--version"], capture_output=True).returncode == 0:  # or it is an empty shim
            done = subprocess.run([python, ROOT / "run.py"], capture_output=True, encoding="utf-8")
            assert done.stderr.startswith("run.py needs Python 3.11 or newer, this is 3."), done.stderr
