"""Runs that are killed, doubled, or short of space."""

import ctypes
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import QUICK, ROOT, copy_project, fill_folder, read_report, run_py

from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.report import update_report

SMALL = ["-p", "FINE_TUNE_EPOCHS=1", *QUICK]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return fill_folder(tmp_path_factory.mktemp("photos"), {"a": 12, "b": 12})


def start(project, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, project / "run.py", "--no-venv", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=project, stdout=pipe, stderr=pipe, encoding="utf-8", start_new_session=True)


def test_killed_in_the_middle_and_run_again(project, photos):
    """In each notebook in turn: the next run gets past what this one left, and is killed one notebook later."""
    for notebook in ("EDA", "train", "onnx_quant", "compare_models"):
        process = start(project, "--data", str(photos), "--name", "killed", *SMALL)
        shown = ""
        while notebook not in shown:
            shown += process.stdout.read(1)
            assert process.poll() is None, process.stderr.read()
        time.sleep(4)  # past the imports
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = run_py(project, "--data", str(photos), "--name", "killed", *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_runs_at_once(project, photos):
    both = [start(project, "--data", str(photos), "--name", "twice", *SMALL) for _ in range(2)]
    for process in both:
        output, error = process.communicate()
        assert process.returncode == 0, output + error
    assert set(read_report(project, "twice")) == {"dataset", "train", "quantization", "comparison"}


NO_SPACE = """
import resource, signal, sys, torch
from pathlib import Path
from utils.checkpoint import save_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
save_checkpoint(Path(sys.argv[1]), torch.nn.Linear(100, 100), arch="conv_net", classes=[], preprocessing={})
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit on a process")
def test_full_disk_leaves_the_good_file(tmp_path):
    path = tmp_path / "net.pth"
    save_checkpoint(path, torch.nn.Linear(2, 2), arch="conv_net", classes=["a"], preprocessing={})
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", NO_SPACE, path], cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode != 0
    assert f"InputError: {path} cannot be written: " in done.stderr and "make room on that disk" in done.stderr
    assert path.read_bytes() == before and load_checkpoint(path)["classes"] == ["a"]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["net.pth", "net.pth.sha256"]


SMALL_DISK = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit on a process")
def test_full_disk_is_named_and_the_last_run_is_kept(project, photos, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SMALL_DISK)
    runs = project / "runs" / "full disk"
    runs.mkdir(parents=True)
    (runs / "EDA.ipynb").write_text("the last run")
    small = {"PYTHONPATH": str(tmp_path), "IPYTHONDIR": str(tmp_path)}
    done = run_py(project, "--data", str(photos), "--name", "full disk", *SMALL, **small)
    assert done.returncode == 1
    assert "runs/full disk/EDA.ipynb cannot be written: file too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert [(each.name, each.read_text()) for each in runs.iterdir()] == [("EDA.ipynb", "the last run")]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit on a process")
def test_full_disk_during_set_up_is_named(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SMALL_DISK)
    project = copy_project(tmp_path / "project")
    command = [sys.executable, project / "run.py", "lab"]
    small = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=small, capture_output=True, encoding="utf-8")
    assert done.returncode == 1
    assert ".venv cannot be made: " in done.stderr and "File too large. It takes up to 7 GB" in done.stderr
    assert "Traceback" not in done.stderr


KILLED = """
import os, signal, sys
from pathlib import Path
from utils.files import whole_file
with whole_file(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_save_left_goes_with_a_later_one(tmp_path):
    for _ in range(2):
        subprocess.run([sys.executable, "-c", KILLED, tmp_path / "report.json"], cwd=ROOT)
    old, young = tmp_path.iterdir()
    os.utime(old, (0, 0))
    update_report(tmp_path, "dataset", {})
    assert {each.name for each in tmp_path.iterdir()} == {"report.json", young.name}, "it may be another run's, at work"


SLOW_PACKAGE = """
import sys, time, zipfile
from pathlib import Path
def build_wheel(folder, config_settings=None, metadata_directory=None):
    started = Path("started")
    if not started.exists():
        started.touch()
        time.sleep(600)
    with zipfile.ZipFile(Path(folder) / "slow-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("slow-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: slow\\nVersion: 1.0\\n")
        wheel.writestr("slow-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("slow-1.0.dist-info/RECORD", "")
    return "slow-1.0-py3-none-any.whl"
"""


def test_killed_while_installing_and_called_again(tmp_path):
    project, package = copy_project(tmp_path / "과일 분류"), tmp_path / "slow"
    package.mkdir()
    (package / "slow.py").write_text(SLOW_PACKAGE)
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "slow"\nbackend-path = ["."]\n'
        '[project]\nname = "slow"\nversion = "1.0"\n'
    )
    (project / "requirements.txt").write_text(package.as_uri())
    command = [sys.executable, project / "run.py", "lab"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    while not (package / "started").exists():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert (project / ".venv").exists() and not (project / ".venv" / "installed.json").exists()
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert "Setting up .venv" in done.stdout and "Set up." in done.stdout, done.stdout + done.stderr
    assert list(project.glob(".venv/**/slow-1.0.dist-info"))
    again = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert "Set" not in again.stdout, "it was set up once more"


OFFLINE = """
import socket
def refuse(self, address, connect=socket.socket.connect):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError("no network")
    return connect(self, address)
socket.socket.connect = refuse
"""


def obey_permissions() -> None:
    """Make even root's writing subject to a file's mode, in this process and those it starts (prctl(2), Linux)."""
    libc, drop_capability, override = ctypes.CDLL(None), 24, 1
    libc.prctl(drop_capability, override, 0, 0, 0)


@pytest.fixture(scope="module")
def read_only_run(project, photos, tmp_path_factory) -> subprocess.CompletedProcess:
    """A run on a folder that nobody can write to, without a network, on a Korean console."""
    site = tmp_path_factory.mktemp("offline")
    (site / "sitecustomize.py").write_text(OFFLINE, encoding="utf-8")
    words = {"PYTHONPATH": str(site), "PYTHONIOENCODING": "cp949", "LC_ALL": "C", "HF_HUB_OFFLINE": "0"}
    options = {"env": os.environ | words, "encoding": "cp949", "errors": "replace", "preexec_fn": obey_permissions}
    command = [sys.executable, project / "run.py", "--no-venv", "--data", photos, "--name", "read only", *SMALL]
    kept = {path: path.stat().st_mode for path in [photos, *photos.rglob("*")]}
    for path in kept:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        touched = subprocess.run(["touch", photos / "a" / "new"], preexec_fn=obey_permissions, capture_output=True)
        assert touched.returncode != 0, "the folder is not protected, so the run would prove nothing"
        return subprocess.run(command, capture_output=True, **options)
    finally:
        for path, mode in kept.items():
            path.chmod(mode)


@pytest.mark.skipif(os.name == "nt", reason="Windows lets files be added to a read-only folder")
def test_no_network_a_korean_console_and_data_that_cannot_be_written_to(project, read_only_run):
    assert read_only_run.returncode == 0, read_only_run.stdout + read_only_run.stderr
    assert set(read_report(project, "read only")) == {"dataset", "train", "quantization", "comparison"}


WINDOWS = """
import multiprocessing, os
multiprocessing.set_start_method("spawn", force=True)

def is_open(path):
    import psutil
    process, path = psutil.Process(), os.path.realpath(path)
    return path in {each.path for each in [*process.open_files(), *process.memory_maps()]}

def refuse_while_open(name):
    original = getattr(os, name)
    def call(*paths, **options):
        for path in paths:
            if is_open(path):
                raise PermissionError(13, "The process cannot access the file because it is being used", str(path))
        return original(*paths, **options)
    setattr(os, name, call)

for name in ("replace", "rename", "remove", "unlink"):
    refuse_while_open(name)
"""


def test_nothing_is_replaced_while_it_is_open(project, photos, read_only_run, tmp_path):
    """Windows refuses that, and starts processes by spawning; this run replaces what the one before it wrote."""
    (tmp_path / "sitecustomize.py").write_text(WINDOWS, encoding="utf-8")
    (tmp_path / "held.txt").touch()
    code = "import os; file = open('held.txt'); os.replace('held.txt', 'new.txt')"
    strict = {"PYTHONPATH": str(tmp_path)}
    control = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | strict, capture_output=True)
    assert b"PermissionError" in control.stderr
    done = run_py(project, "--data", str(photos), "--name", "read only", *SMALL, **strict)
    assert done.returncode == 0, done.stdout + done.stderr
