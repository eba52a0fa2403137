"""compare_models.ipynb on models that this project did not make."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import copy_project, fill_folder
from nets import residual_net, to_int8

from utils.compare_models.models import unsplit_index
from utils.datasets import ImageDataset, evaluation_transform

PREPROCESSING = {"image_size": 16, "interpolation": "bilinear", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
RUN = """
import json, sys, run, pathlib
print(run.execute("compare_models", json.loads(sys.argv[1]), pathlib.Path("foreign.ipynb")))
"""
CAPTION = "in these files"
OTHER_CAPTION = "on the test part and more"


@pytest.fixture
def settings(tmp_path) -> dict:
    """A folder of photos, and two ONNX files that say nothing of themselves."""
    data = fill_folder(tmp_path / "photos", {"apple": 9, "cherry": 9, "tomato": 4})
    float_path, index = residual_net(tmp_path / "float.onnx"), unsplit_index(data)
    dataset = ImageDataset(data, index, ["apple", "cherry", "tomato"], evaluation_transform(PREPROCESSING))
    images = [image.numpy()[None] for image, _ in dataset]
    int8_path = to_int8(float_path, tmp_path / "small.onnx", np.concatenate(images))
    models = {"float": str(float_path), "small": str(int8_path)}
    return {"DATA": str(data), "NAME": "foreign", "ARCH": "", "MODELS": models, "PAIR": ["float", "small"], "ROUNDS": 4}


def compare(project: Path, settings: dict) -> str:
    command = [sys.executable, "-c", RUN, json.dumps(settings)]
    done = subprocess.run(command, cwd=project, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def read_comparison(project: Path) -> dict:
    path = project / "checkpoints" / "foreign" / "report.json"
    return json.loads(path.read_text(encoding="utf-8"))["comparison"]


def doubts(report: dict) -> list[tuple]:
    """List where a loss of macro-F1 is not excluded, by how many images, and what is allowed."""
    codes = [code for code in report["verdict"]["codes"] if code["code"] == "macro-F1 loss not excluded"]
    return [(code["where"], code["images"], code["allowed"]) for code in codes]


def test_other_peoples_models_get_a_table_a_verdict_and_a_card(project, settings):
    assert compare(project, settings | {"PREPROCESSING": PREPROCESSING}) == "None"
    report = read_comparison(project)
    assert set(report["models"]) == {"float", "small"}
    assert set(report["pairs"]) == {"in these files", "in these files, test part"}
    assert {row["model"] for row in report["robustness"]} == {"float", "small"}
    assert report["verdict"]["ship"] == "float"
    assert re.search(r"not smaller: it has 1\d\d% of float's bytes", report["verdict"]["reason"])
    assert doubts(report) == [("in these files", 22, 0.01)]
    card = (project / "checkpoints" / "foreign" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "# float: images in folders" in card


def test_another_caption_changes_no_verdict(tmp_path, settings):
    project = copy_project(tmp_path / "project")
    for path in [project / "compare_models.ipynb", *(project / "utils" / "compare_models").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(CAPTION, OTHER_CAPTION), encoding="utf-8")
    assert compare(project, settings | {"PREPROCESSING": PREPROCESSING}) == "None"
    report = read_comparison(project)
    assert OTHER_CAPTION in report["pairs"], "nothing was renamed: the test shows nothing"
    assert report["verdict"]["ship"] == "float"
    assert doubts(report) == [(OTHER_CAPTION, 22, 0.01)]
