"""Runs that are killed, doubled, or short of space."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import fill_folder, read_report, run_py

SMALL = ["-p", "FINE_TUNE_EPOCHS=1", "-p", "FOLDS=3", "-p", "REPEATS=1", "-p", "GROUPS="]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return fill_folder(tmp_path_factory.mktemp("photos"), {"a": 12, "b": 12})


def start(project, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, project / "run.py", "--no-venv", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=project, stdout=pipe, stderr=pipe, encoding="utf-8", start_new_session=True)


@pytest.mark.parametrize("notebook", ["train", "onnx_quant", "compare_models"])
def test_killed_in_the_middle_and_run_again(project, photos, notebook):
    name = f"killed in {notebook}"
    process = start(project, "--data", str(photos), "--name", name, *SMALL)
    shown = ""
    while notebook not in shown:
        shown += process.stdout.read(1)
        assert process.poll() is None, process.stderr.read()
    time.sleep(4)  # past the imports
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = run_py(project, "--data", str(photos), "--name", name, *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list((project / "checkpoints" / name).rglob("*.tmp"))


def test_two_runs_at_once(project, photos):
    both = [start(project, "--data", str(photos), "--name", "twice", *SMALL) for _ in range(2)]
    for process in both:
        output, error = process.communicate()
        assert process.returncode == 0, output + error
    assert set(read_report(project, "twice")) == {"dataset", "train", "quantization", "comparison"}
