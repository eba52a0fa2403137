"""The latency protocol: what it measures, and that its statistics are right; no time is asserted."""

import multiprocessing
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import ROOT
from nets import to_onnx

from utils.checkpoint import save_checkpoint
from utils.compare_models import latency
from utils.compare_models.latency import PHOTO, is_clear, latency_ratio, measure_latency, summarize
from utils.config import InputError
from utils.model import ConvNet
from utils.onnx_quant.export import write_metadata

PREPROCESSING = {"image_size": 64, "interpolation": "bilinear", "mean": [0.5, 0.4, 0.3], "std": [0.5, 0.2, 0.3]}
PHOTOS = [ROOT / "data" / "train" / "tomato" / f"tomato_00_0{number}.jpg" for number in range(3)]


@pytest.fixture(scope="module")
def timing(tmp_path_factory):
    """One network as a checkpoint and as an ONNX file without preprocessing, timed."""
    folder = tmp_path_factory.mktemp("내 모델")
    model = ConvNet(3).eval()
    details = {"arch": "conv_net", "classes": list("abc")}
    save_checkpoint(folder / "net.pth", model, **details, preprocessing=PREPROCESSING)
    to_onnx(model, folder / "net.onnx")
    write_metadata(folder / "net.onnx", **details)
    paths = {"pytorch": folder / "net.pth", "onnx": folder / "net.onnx"}
    return measure_latency(paths, PHOTOS, (1, 3), rounds=5, preprocessing=PREPROCESSING)


def test_every_model_is_timed_at_every_task(timing):
    table = summarize(timing.calls)
    expected = [(name, task) for task in (1, 3, PHOTO) for name in ("pytorch", "onnx")]
    assert list(zip(table["model"], table["task"], strict=True)) == expected
    assert (table["p50"] > 0).all() and (table["p50"] <= table["p90"]).all() and (table["p90"] <= table["p99"]).all()
    assert (table["low"] <= table["p50"]).all() and (table["p50"] <= table["high"]).all()
    rounds = timing.calls.groupby("task")["round"].nunique()
    assert rounds[1] == rounds[PHOTO] == len(timing.reference) == 5 and rounds[3] == 2


@pytest.mark.parametrize(("ratio", "spread", "clear"), [(1, 0.01, True), (1, 0.1, False), (0.4, 0.1, True)])
def test_a_ratio_is_clear_when_its_interval_is_narrow_or_far_from_1(ratio, spread, clear):
    assert is_clear(ratio, ratio * (1 - spread), ratio * (1 + spread)) == clear


def test_each_process_tells_how_it_started(timing):
    processes = timing.processes
    assert list(processes.index) == ["pytorch", "onnx"]
    assert (processes["load_ms"] > 0).all() and (processes["load_ms"] < processes["cold_start_ms"]).all()
    assert (processes["peak_rss_mb"] <= processes["peak_rss_mb_batch"]).all()
    assert processes["peak_rss_mb"]["onnx"] < processes["peak_rss_mb"]["pytorch"], (
        "the process that runs ONNX has torch"
    )


def test_process_that_runs_onnx_stays_free_of_what_it_does_not_need(tmp_path):
    to_onnx(ConvNet(3).eval(), tmp_path / "net.onnx")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as worker:
        worker.submit(latency.start, tmp_path / "net.onnx", PHOTOS, PREPROCESSING).result()
        assert worker.submit(latency.time_task, PHOTO, True).result()
        modules = worker.submit(eval, "set(__import__('sys').modules)").result()
    assert "onnxruntime" in modules and not modules & {"torch", "pandas", "scipy", "sklearn"}


KILLED = """
import os, sys, multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from utils.compare_models import latency
worker = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
worker.submit(latency.start, Path(sys.argv[1]), [Path(sys.argv[2])], None).result()
print(next(iter(worker._processes)), flush=True)
os.abort()
"""


def test_process_ends_when_the_one_that_measures_is_killed(tmp_path):
    to_onnx(ConvNet(3).eval(), tmp_path / "net.onnx")
    write_metadata(tmp_path / "net.onnx", preprocessing=PREPROCESSING)
    command = [sys.executable, "-c", KILLED, tmp_path / "net.onnx", PHOTOS[0]]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8")
    process = int(done.stdout)
    for _ in range(300):
        if not psutil.pid_exists(process):
            return
        time.sleep(0.1)
    pytest.fail(f"process {process} lives on")


def test_broken_model_is_named_and_not_the_process(tmp_path):
    (tmp_path / "cut.onnx").write_bytes(b"cut")
    with pytest.raises(Exception) as error:
        measure_latency({"onnx": tmp_path / "cut.onnx"}, PHOTOS, (1,), rounds=1, preprocessing=PREPROCESSING)
    assert isinstance(error.value, InputError) and "cut.onnx" in str(error.value)


def test_ratio_pairs_what_was_measured_in_the_same_round():
    """A machine that slows down tenfold between rounds changes no ratio."""
    generator = np.random.default_rng(0)
    pace = generator.choice([1.0, 10.0], 24)
    rows = [("onnx", 1, number, 2 * each) for number, each in enumerate(pace)]
    rows += [("int8", 1, number, each * generator.normal(1.5, 0.01)) for number, each in enumerate(pace)]
    calls = pd.DataFrame(rows, columns=["model", "task", "round", "ms"])
    ratio, low, high = latency_ratio(calls, "onnx", "int8", 1)
    assert 0.74 < low <= ratio <= high < 0.76


def test_a_machine_that_was_busy_in_a_tenth_of_rounds_is_called_so():
    quiet, busy = np.ones(20), np.r_[np.ones(17), 2, 2, 2]
    found = [latency.Timing(None, None, reference).noise() for reference in (quiet, busy)]
    assert found == [{"noise": 1.0, "busy": False}, {"noise": 2.0, "busy": True}]
