"""utils.predict needs onnxruntime, numpy and Pillow, and answers for every photo it can read."""

import os
import subprocess
import sys

import numpy as np
import onnx
import onnx.utils
import pytest
from conftest import ROOT
from nets import residual_net
from PIL import Image

from utils.datasets import evaluation_transform
from utils.images import read_image
from utils.onnx_quant.deploy import write_checked, write_deployable
from utils.onnx_quant.export import write_metadata
from utils.session import outdated, run_model
from utils.train.novelty import fit_detector

PREPROCESSING = {"image_size": 16, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.25] * 3}
CLASSES = ["사과", "cherry", "tomato"]
# every other package of this project is made impossible to import
BARE = """
import runpy, sys
for name in ("torch", "torchvision", "pandas", "scipy", "sklearn", "onnx", "tqdm", "matplotlib", "timm"):
    sys.modules[name] = None
runpy.run_module("utils.predict", run_name="__main__")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("내 사진")
    residual_net(folder / "net.onnx")
    write_metadata(folder / "net.onnx", classes=CLASSES, preprocessing=PREPROCESSING)
    for name, any_size in (("any", True), ("fixed", False)):
        write_deployable(folder / "net.onnx", folder / f"{name}_deploy.onnx", PREPROCESSING, any_size=any_size)
    generator = np.random.default_rng(0)
    for number in range(3):
        pixels = generator.integers(0, 256, (30 + number, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "bad.jpg").write_bytes(b"<html></html>")
    return folder


def extract_body(source, target):
    """Cut a network off before its last layer."""
    onnx.utils.extract_model(source, target, ["input"], ["f"], check_model=False)
    return target


def predict(folder, *names, **environment):
    command = [sys.executable, "-c", BARE, *[str(folder / name) for name in names]]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"} | environment
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", errors="replace")


@pytest.mark.parametrize("model", ["any_deploy.onnx", "fixed_deploy.onnx"])
def test_prints_class_and_probability_of_each_photo(folder, model):
    done = predict(folder, model, "0.png", "1.png", "2.png")
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [str(folder / f"{number}.png") for number in range(3)]
    assert all(line[1] in CLASSES and 33 <= float(line[2].rstrip("%")) <= 100 for line in lines)


@pytest.mark.parametrize(("threshold", "unsure"), [(0.0, False), (1.01, True)])
def test_says_when_it_is_not_sure(folder, tmp_path, threshold, unsure):
    residual_net(tmp_path / "net.onnx")
    write_metadata(tmp_path / "net.onnx", classes=CLASSES, preprocessing=PREPROCESSING, abstain_below=threshold)
    write_deployable(tmp_path / "net.onnx", tmp_path / "net_deploy.onnx", PREPROCESSING)
    done = predict(folder, tmp_path / "net_deploy.onnx", "0.png")
    assert done.returncode == 0 and done.stdout.strip().endswith("unsure") == unsure


@pytest.fixture(scope="module")
def detector_model(folder, tmp_path_factory):
    """Write a model that knows photos 0 to 2 of `folder`, and calls unknown what is farther than `novelty_above`."""
    target = tmp_path_factory.mktemp("novelty")
    transform = evaluation_transform(PREPROCESSING)
    body = extract_body(folder / "net.onnx", target / "body.onnx")
    images = np.stack([transform(read_image(folder / f"{number}.png")).numpy() for number in range(3)])
    features = run_model(body, np.concatenate([images, images[:, :, ::-1]]))
    detector = fit_detector(features, np.arange(6) % 3)

    def write(novelty_above: float, abstain_below: float = 0.0):
        source = residual_net(target / "net.onnx")
        details = {"classes": CLASSES, "preprocessing": PREPROCESSING, "novelty": detector.tensors()}
        details.update(novelty_above=novelty_above, abstain_below=abstain_below)
        write_metadata(source, **details)
        write_checked(source, target / "net_deploy.onnx", details, [folder / "0.png"], [0])
        return target / "net_deploy.onnx"

    return write


@pytest.mark.parametrize(
    ("novelty_above", "abstain_below", "doubt"),
    [(1e6, 0.0, []), (1e6, 1.01, ["unsure"]), (0.0, 0.0, ["unknown"]), (0.0, 1.01, ["unknown"])],
)
def test_says_that_a_photo_is_of_nothing_it_knows_and_what_it_is_nearest_to(
    folder, detector_model, novelty_above, abstain_below, doubt
):
    done = predict(folder, detector_model(novelty_above, abstain_below), "0.png", "1.png")
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[3:] for line in lines] == [doubt, doubt]
    assert all(line[1] in CLASSES and line[2].endswith("%") for line in lines)


def test_both_files_agree(folder):
    answers = []
    for model in ("any_deploy.onnx", "fixed_deploy.onnx"):
        lines = predict(folder, model, "0.png", "1.png", "2.png").stdout.splitlines()
        answers.append([line.split("\t")[1] for line in lines])
    assert answers[0] == answers[1] and len(answers[0]) == 3


def test_bad_photo_is_named_and_the_others_are_answered(folder):
    done = predict(folder, "any_deploy.onnx", "0.png", "bad.jpg", "gone.png", "1.png")
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 2
    assert "bad.jpg: not an image; it is a web page" in done.stderr
    assert "gone.png" in done.stderr and "Traceback" not in done.stderr


def test_model_that_takes_no_photos_is_refused(folder):
    done = predict(folder, "net.onnx", "0.png")
    assert done.returncode == 1
    assert "net.onnx takes 'input' tensor(float)" in done.stderr and "_deploy.onnx" in done.stderr
    done = predict(folder, "gone.onnx", "0.png")
    assert done.returncode == 1 and "gone.onnx does not exist" in done.stderr


def test_usage_without_photos(folder):
    done = predict(folder, "any_deploy.onnx")
    assert done.returncode == 2 and done.stderr.startswith("usage: python -m utils.predict")


@pytest.mark.parametrize("encoding", ["cp949", "ascii"])
def test_console_that_lacks_letters(folder, encoding):
    done = predict(folder, "any_deploy.onnx", "0.png", "1.png", LC_ALL="C", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.parametrize(
    ("version", "is_old"), [("1.24.4", True), ("1.25.0", False), ("1.32.0", False), ("2.0.0", False)]
)
def test_an_onnxruntime_that_gets_int8_wrong_is_named(version, is_old):
    assert outdated(version).startswith(f"onnxruntime {version} gives wrong answers") == is_old
