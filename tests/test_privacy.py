"""Nothing reports anywhere: on a new machine, in a network without a way out, no name is asked for.

Where no such network can be made (`offline.isolate`), telemetry is still known by the files that it leaves in a home.
"""

import json
import re
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ROOT
from offline import run_offline

from utils.compare_models.tryout import read_runtime
from utils.config import InputError

README = (ROOT / "README.md").read_text(encoding="utf-8")
TELEMETRY = re.compile(r"microsoft|onnxruntime|deviceid|intel|telemetry|analytics", re.IGNORECASE)
# opens JupyterLab, asks it what its page asks first, and ends it
VISIT_LAB = """
import socket, subprocess, sys, time, urllib.request
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
options = ["--no-browser", "--allow-root", "--IdentityProvider.token=", f"--port={port}"]
lab = subprocess.Popen([sys.executable, "run.py", "--no-venv", "lab", *options])
while lab.poll() is None:
    time.sleep(0.2)
    try:
        print(urllib.request.urlopen(f"http://127.0.0.1:{port}/lab/api/update").read().decode())
        lab.terminate()
    except OSError:
        pass
"""


def left_behind(home: Path) -> set[str]:
    """List what lies in a home: the first two folders of each file below a hidden one that programs share."""
    found = set()
    for path in home.rglob("*"):
        if path.is_file():
            parts = path.relative_to(home).parts
            found.add("/".join(parts[: 2 if parts[0] in (".cache", ".config", ".local") else 1]))
    return found


def check_silence(done, home: Path) -> None:
    """Check that a command did its work, called nobody, and left only what the README names."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.calls, done.calls
    assert not [path for path in home.rglob("*") if TELEMETRY.search(str(path.relative_to(home)))]
    privacy = README.split("\n## Privacy\n")[1].split("\n## ")[0]
    assert not [name for name in left_behind(home) if f"`~/{name}" not in privacy], left_behind(home)


def test_all_notebooks_run_in_silence(embedded, home):
    check_silence(embedded, home)


def test_page_and_predict_work_in_silence(project, embedded, home):
    with suppress(InputError):  # npm fetches this once, which does ask for a name
        read_runtime()
    check_silence(run_offline([sys.executable, project / "run.py", "--no-venv", "page"], home, project.parent), home)
    (model,) = (project / "checkpoints").glob("*_int8_deploy.onnx")
    photo = ROOT / "data" / "train" / "tomato" / "tomato_00_00.jpg"
    done = run_offline([sys.executable, "-m", "utils.predict", model, photo], home, project)
    check_silence(done, home)
    assert len(done.stdout.split("\t")) >= 3


def test_model_card_says_what_to_set_elsewhere(project, embedded):
    assert "ORT_DISABLE_TELEMETRY=1" in (project / "checkpoints" / "MODEL_CARD.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("imported", ["onnxruntime", "openvino"])
def test_libraries_keep_silent_once_utils_is_imported(tmp_path, imported):
    code = f"import utils, {imported}, time; time.sleep(1)"
    check_silence(run_offline([sys.executable, "-c", code], tmp_path / "home", ROOT), tmp_path / "home")


def test_tests_keep_silent(tmp_path):
    pytest_call = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/test_session.py"]
    check_silence(run_offline(pytest_call, tmp_path / "home", ROOT), tmp_path / "home")


def test_jupyterlab_does_not_ask_for_newer_versions(tmp_path):
    done = run_offline([sys.executable, "-c", VISIT_LAB], tmp_path / "home", ROOT)
    assert json.loads(done.stdout.splitlines()[0]) == {"notification": None}
    check_silence(done, tmp_path / "home")


@pytest.mark.parametrize("name", ["EDA", "train", "onnx_quant", "compare_models"])
def test_notebooks_import_utils_before_onnxruntime(name):
    cells = json.loads((ROOT / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert "onnxruntime" not in re.findall(r"^(?:from|import) (\w+)", code.split("from utils")[0], re.MULTILINE)
