"""run.py and the processes that it starts, with real signals: one kernel at a time, and nothing is left behind."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import nbformat
import psutil
import pytest
from conftest import ROOT, fingerprint, run_py
from nets import to_onnx

import run
from utils.model import ConvNet

MODEL = {"macro_f1": 1, "ci95": [1, 1], "bytes": 1, "file": "int8.onnx", "peak_rss_mb": 1}
MODEL |= {"latency_ms": {"1": {"p50": 1, "p50_ci95": [1, 1]}}, "photo_to_answer_ms": {"p50": 1}}
REPORT = {
    "dataset": {"images": 2, "classes": {"a": 1, "b": 1}, "groups": 2, "refused": [], "series": [], "choice": "x"}
    | {"split": {"test": 2}},
    "train": {"arch": "conv_net", "oof_macro_f1": 1, "oof_macro_f1_ci95": [1, 1], "test_macro_f1": 1}
    | {"test_macro_f1_ci95": [1, 1]},
    "quantization": {"recipe": "int8", "parity_max_abs_diff": 0},
    "comparison": {
        "models": {"int8": MODEL},
        "pair": ["onnx", "int8"],
        "pairs": {"test part": {"agreement": 1, "images": 1}},
        "verdict": {"ship": "int8", "outcome": "ship", "reason": "it is here"},
    },
}
WORK = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path("checkpoints/started").touch()
while True:
    pathlib.Path("checkpoints/written").write_text(str(time.time()))
    time.sleep(0.1)
"""
posix_only = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")


def tiny_project(folder: Path, source: str) -> Path:
    """Make a project whose notebooks have one setting, a cell of `source`, and what an earlier run put below it."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "report.json").write_text(json.dumps(REPORT), encoding="utf-8")
    shutil.copy(ROOT / "run.py", folder)
    shutil.copytree(ROOT / "utils", folder / "utils", ignore=shutil.ignore_patterns("__pycache__"))  # says the result
    shown = nbformat.v4.new_output("stream", text="304 photos")
    cells = [
        nbformat.v4.new_code_cell('NAME = ""', metadata={"tags": ["parameters"]}, execution_count=1),
        nbformat.v4.new_code_cell(source, execution_count=2),
        nbformat.v4.new_code_cell("print('the end')", execution_count=3, outputs=[shown]),
    ]
    for name in run.NOTEBOOKS:
        nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{name}.ipynb")
    return folder


def listen_to_signals() -> None:
    """Undo what a test run in the background hands down: there, signals of the terminal are ignored."""
    for name in ("SIGHUP", "SIGINT"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)


def start(project: Path, *arguments: str, **options) -> subprocess.Popen:
    command, pipe = [sys.executable, project / "run.py", "--no-venv", *arguments], subprocess.PIPE
    if os.name != "nt":
        options["preexec_fn"] = listen_to_signals
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, encoding="utf-8", **options)


def wait_for(condition, seconds: float = 60) -> None:
    """Wait, but not for ever, where something is broken."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@pytest.fixture
def watch() -> Iterator[Callable]:
    """List a process and its descendants, once it has come far enough; what a failed test leaves of them is ended."""
    watched = []

    def family(process: subprocess.Popen, far_enough: Callable[[], bool]) -> list[psutil.Process]:
        watched.append(psutil.Process(process.pid))
        wait_for(far_enough)
        watched.extend(watched[0].children(recursive=True))
        return watched

    yield family
    for process in watched:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def assert_all_end(processes: list[psutil.Process], folder: Path) -> None:
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive
    before = fingerprint(folder)
    time.sleep(0.3)
    assert fingerprint(folder) == before, "something goes on writing"


def test_one_kernel_lives_at_a_time(tmp_path):
    source = """
import psutil, pathlib
kernels = [process for process in psutil.Process().parent().children() if "ipykernel_launcher" in process.cmdline()]
with pathlib.Path("checkpoints/kernels").open("a") as file:
    print(len(kernels), file=file)
"""
    project = tiny_project(tmp_path / "project", source)
    done = run_py(project)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert (project / "checkpoints" / "kernels").read_text().split() == ["1"] * 4


@posix_only
@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT"])
def test_a_signal_ends_everything_and_damages_no_notebook(tmp_path, watch, name):
    project = tiny_project(tmp_path / "project", WORK)
    notebooks = [(project / f"{name}.ipynb").read_bytes() for name in run.NOTEBOOKS]
    process = start(project, "--in-place")
    processes = watch(process, (project / "checkpoints" / "started").exists)
    assert len(processes) == 3
    os.kill(process.pid, getattr(signal, name))
    output, error = process.communicate(timeout=60)
    assert process.returncode == 128 + getattr(signal, name)
    assert output.split() == ["EDA"] and error == "stopped\n"
    assert_all_end(processes, project)
    assert [(project / f"{name}.ipynb").read_bytes() for name in run.NOTEBOOKS] == notebooks


def install_nothing(project: Path) -> None:
    """Make a .venv that has the packages of this Python, and whose set-up is finished."""
    venv.create(project / ".venv")
    packages = Path(nbformat.__file__).parent.parent
    (next(project.glob(".venv/lib/*/site-packages")) / "packages.pth").write_text(str(packages), encoding="utf-8")
    (project / "requirements.txt").touch()
    installed = {"lock": hashlib.sha256(b"").hexdigest()}
    (project / ".venv" / "installed.json").write_text(json.dumps(installed), encoding="utf-8")


@posix_only
def test_sigterm_reaches_the_run_in_its_environment_and_nohup_is_obeyed(tmp_path, watch):
    project = tiny_project(tmp_path / "project", WORK)
    install_nothing(project)
    command = [sys.executable, project / "run.py"]
    process = subprocess.Popen(command, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    processes = watch(process, (project / "checkpoints" / "started").exists)
    os.kill(process.pid, signal.SIGHUP)
    before = (project / "checkpoints" / "written").read_text()
    wait_for(lambda: (project / "checkpoints" / "written").read_text() > before)
    time.sleep(1.5)  # the kernel would notice by now that it is alone
    assert all(process.is_running() for process in processes), "it ended with its terminal, in spite of nohup"
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert_all_end(processes, project)


def test_run_that_is_killed_takes_its_kernel_along(tmp_path, watch):
    """Nobody can act on SIGKILL; the kernel notices that it is alone."""
    project = tiny_project(tmp_path / "project", WORK)
    process = start(project)
    _, kernel, child = watch(process, (project / "checkpoints" / "started").exists)
    process.kill()
    assert_all_end([kernel], project)
    child.kill()  # one that does not look after itself


def test_run_ends_with_the_process_that_waits_for_it(tmp_path, watch):
    """On Windows, `python run.py` waits for another one in .venv; here something else stands for the first."""
    project = tiny_project(tmp_path / "project", WORK)
    waiting = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    process = start(project, "--end-with", str(waiting.pid))
    processes = watch(process, (project / "checkpoints" / "started").exists)
    waiting.kill()
    waiting.wait()
    assert_all_end(processes, project)


LATENCY = """
import sys
from pathlib import Path
from utils.compare_models.latency import measure_latency
if __name__ == "__main__":
    measure_latency({"net": Path(sys.argv[1])}, [Path(sys.argv[2])], (1,), rounds=100_000, threads=1)
"""


def test_timed_processes_end_with_a_notebook_that_is_killed(tmp_path, watch):
    model = ConvNet(3).eval()
    preprocessing = {"image_size": 64, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3}
    to_onnx(model, tmp_path / "net.onnx", arch="conv_net", classes=list("abc"), preprocessing=preprocessing)
    (tmp_path / "latency.py").write_text(LATENCY)
    photo = ROOT / "data" / "train" / "tomato" / "tomato_00_00.jpg"
    command = [sys.executable, tmp_path / "latency.py", tmp_path / "net.onnx", photo]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)
    _, *children = watch(process, lambda: b"latency" in process.stderr.read1(100))
    process.kill()
    assert_all_end(children, tmp_path)


SLOW_PACKAGE = """
import time
def build_wheel(folder, config_settings=None, metadata_directory=None):
    open("started", "w").close()
    time.sleep(600)
"""
BUILT = """
[build-system]
requires = []
build-backend = "slow"
backend-path = ["."]
[project]
name = "slow"
version = "1.0"
"""


@posix_only
def test_a_signal_during_set_up_ends_the_installation(tmp_path, watch):
    project, package = tiny_project(tmp_path / "project", ""), tmp_path / "slow"
    package.mkdir()
    (package / "slow.py").write_text(SLOW_PACKAGE)
    (package / "pyproject.toml").write_text(BUILT)
    (project / "requirements.txt").write_text(package.as_uri())
    process = subprocess.Popen([sys.executable, project / "run.py"], stdout=subprocess.DEVNULL)
    _, pip, build = watch(process, (package / "started").exists)
    process.terminate()
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert_all_end([pip], project)
    build.kill()  # it would end with its work
    assert not (project / ".venv" / "installed.json").exists()


@posix_only
def test_a_signal_to_lab_ends_jupyter(tmp_path, watch):
    project = tiny_project(tmp_path / "project", "")
    folders = {f"JUPYTER_{kind}_DIR": str(tmp_path) for kind in ("CONFIG", "DATA", "RUNTIME")}
    process = start(project, "lab", "--allow-root", "--no-browser", "--port=0", env=os.environ | folders)
    processes = watch(process, lambda: list(tmp_path.glob("jpserver-*.json")))
    process.terminate()
    process.communicate(timeout=60)
    assert_all_end(processes, project)


def test_a_cell_that_fails_leaves_nothing_of_an_earlier_run_below_it(tmp_path):
    project = tiny_project(tmp_path / "project", "print('72 photos'); 1 / 0")
    done = run_py(project, "--name", "mine")
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr
    notebook = nbformat.read(project / "runs" / "mine" / "EDA.ipynb", as_version=4)
    last = notebook.cells[-1]
    assert "72 photos" in str(notebook) and "ZeroDivisionError" in str(notebook)
    assert last.outputs == [] and last.execution_count is None, "304 photos are another run's"


def test_a_process_that_dies_is_said_in_a_sentence(tmp_path):
    project = tiny_project(tmp_path / "project", "import os; os._exit(1)")
    done = run_py(project)
    assert done.returncode == 1
    assert "EDA.ipynb: the Python process died, most likely because memory ran out" in done.stderr
    assert "Traceback" not in done.stderr
