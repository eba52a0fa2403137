"""The table of targets: what a runtime answers is compared with what is expected, and a fault is told by its cause."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from nets import residual_net

from bench import elsewhere
from utils.session import run_model

RUNTIME = "ONNX Runtime, graph as written"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The files of a run with its photos, and this Python in the place of the runtime's."""
    images = np.random.default_rng(0).normal(size=(6, 3, 16, 16)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "fp32.npy", run_model(residual_net(tmp_path / "fp32.onnx"), images))
    monkeypatch.setattr(elsewhere, "python_of", lambda *_: sys.executable)
    return tmp_path


def test_runtime_that_is_right_agrees_on_every_photo(run):
    found = elsewhere.try_file(RUNTIME, run, "fp32", run)
    assert (found.agreement, found.error) == (1, "") and found.difference < 1e-4
    assert elsewhere.describe(found).startswith("100 of 100, ")


def test_runtime_that_answers_otherwise_shows_by_how_much(run):
    expected = np.load(run / "fp32.npy")
    expected[0] = np.roll(expected[0], 1) + 9
    np.save(run / "fp32.npy", expected)
    found = elsewhere.try_file(RUNTIME, run, "fp32", run)
    assert found.agreement == pytest.approx(5 / 6) and found.difference > 5


def test_file_that_cannot_be_read_is_told_by_its_cause_and_without_paths(run):
    (run / "fp32.onnx").write_bytes(b"no network")
    found = elsewhere.try_file(RUNTIME, run, "fp32", run)
    assert "INVALID_PROTOBUF" in found.error and str(run) not in found.error
    assert elsewhere.describe(found).startswith("no: ")


def test_every_runtime_of_the_table_is_in_the_document():
    """Whoever adds a runtime has to run it."""
    text = (ROOT / "docs" / "targets.md").read_text(encoding="utf-8")
    for name, runtime in elsewhere.RUNTIMES.items():
        assert text.count(f"| {name} ({elsewhere.version(runtime)})") == text.count("\n## `"), name


def test_it_needs_nothing_of_the_project_inside_of_a_runtime():
    code = "import sys; sys.modules['utils'] = None; import runpy; runpy.run_path('elsewhere.py')"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "bench", check=True)
