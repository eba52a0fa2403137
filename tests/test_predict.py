"""Photos and folders are classified, by run.py or by utils.predict, which needs onnxruntime, numpy and Pillow alone."""

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnx.utils
import pytest
from conftest import ROOT, copy_project, fingerprint, run_py
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
for name in ("jinja2", "psutil", "threadpoolctl", "pillow_heif"):
    sys.modules[name] = None
runpy.run_module("utils.predict", run_name="__main__")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("내 사진")
    residual_net(folder / "net.onnx")
    write_metadata(folder / "net.onnx", classes=CLASSES, preprocessing=PREPROCESSING)
    for name, any_size in (("any", True), ("fixed", False)):
        write_deployable(
            folder / "net.onnx", folder / f"{name}_deploy.onnx", {"preprocessing": PREPROCESSING}, any_size
        )
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
    return call(*[folder / name for name in names], **environment)


def call(*words, cwd=ROOT, **environment):
    command = [sys.executable, "-c", BARE, *map(str, words)]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8", "PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, encoding="utf-8", errors="replace")


def deployed(path, classes=CLASSES, seed=0, **details):
    """Write a file that takes photos of any size."""
    source = residual_net(path.with_suffix(".source"), seed)
    write_metadata(source, classes=classes, preprocessing=PREPROCESSING, **details)
    write_deployable(source, path, {"preprocessing": PREPROCESSING})
    return path


def read_table(path):
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def photos(folder, tmp_path):
    """A folder as people have it: photos in folders, two of one name, hidden files, a text, a photo that is none."""
    photos = tmp_path / "사진 2024"
    for name in ("a/1.png", "b/1.png", "b/2.PNG", ".hidden/3.png", "@eaDir/3.png", "b/._2.png"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "0.png", photos / "a" / "1.png")
    for name in ("b/1.png", ".hidden/3.png", "@eaDir/3.png", "b/._2.png"):
        shutil.copy(folder / "1.png", photos / name)
    shutil.copy(folder / "2.png", photos / "b" / "2.PNG")
    (photos / "notes.txt").write_text("none")
    return photos


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
    write_deployable(tmp_path / "net.onnx", tmp_path / "net_deploy.onnx", {"preprocessing": PREPROCESSING})
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


def test_both_files_agree_to_the_last_digit_as_photos_are_resized_as_in_training(folder, tmp_path):
    for model in ("any", "fixed"):
        call(folder / f"{model}_deploy.onnx", folder, "--csv", tmp_path / f"{model}.csv")
    tables = [read_table(tmp_path / f"{model}.csv") for model in ("any", "fixed")]
    assert tables[0] == tables[1] and len(tables[0]) == 4


def test_folder_is_searched_as_eda_does_and_ends_in_a_summary(folder, photos):
    done = call(folder / "any_deploy.onnx", photos, folder / "0.png")
    assert done.returncode == 0, done.stderr
    names = [line.split("\t")[0] for line in done.stdout.splitlines()]
    assert names == [str(photos / "a/1.png"), str(photos / "b/1.png"), str(photos / "b/2.PNG"), str(folder / "0.png")]
    counts, skipped = done.stderr.splitlines()
    assert counts.startswith("4 photos, 0 of them doubtful: ")
    assert sum(int(part.split()[-1]) for part in counts.partition(": ")[2].split(", ")) == 4
    assert skipped == "Skipped, as no images: .txt 1"


def test_a_doubt_is_told_from_a_class_of_its_name(tmp_path, photos):
    model = deployed(tmp_path / "net_deploy.onnx", ["unsure"] * 3, abstain_below=1.01)
    done = call(model, photos, "--csv", tmp_path / "a.csv")
    assert {tuple(line.split("\t")[1::2]) for line in done.stdout.splitlines()} == {("unsure", "doubt: unsure")}
    assert done.stderr.splitlines()[0] == "3 photos, 3 of them doubtful: doubt: unsure 3 (nearest: unsure 3)"
    assert {row[3] for row in read_table(tmp_path / "a.csv")[1:]} == {"doubt: unsure"}


def test_summary_names_the_classes_that_doubtful_photos_are_nearest_to(folder, tmp_path, photos):
    done = call(deployed(tmp_path / "net_deploy.onnx", ["fig"] * 3, abstain_below=1.01), photos)
    assert done.stderr.splitlines()[0] == "3 photos, 3 of them doubtful: unsure 3 (nearest: fig 3)"


def test_one_photo_needs_no_summary(folder):
    assert predict(folder, "any_deploy.onnx", "0.png").stderr == ""


def test_folder_with_a_bad_file_or_without_photos_is_named_and_the_rest_is_predicted(folder, photos, tmp_path):
    (photos / "a" / "0.jpg").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    done = call(folder / "any_deploy.onnx", tmp_path / "empty", photos)
    assert done.returncode == 1 and len(done.stdout.splitlines()) == 3
    assert "0.jpg: not an image; it is empty (0 bytes)" in done.stderr and "Not readable: 1" in done.stderr
    assert f"{tmp_path / 'empty'} holds no image" in done.stderr and "Traceback" not in done.stderr


def test_table_holds_all_probabilities_and_no_formula(tmp_path, folder):
    shutil.copy(folder / "0.png", tmp_path / "=1+1.png")
    shutil.copy(folder / "1.png", tmp_path / "b.png")
    model = deployed(tmp_path / "net_deploy.onnx", ["@a", "+b", "사과"], abstain_below=1.01)
    done = call(model, "=1+1.png", "b.png", "--csv", "table.csv", cwd=tmp_path)
    assert done.returncode == 0 and "Written: table.csv" in done.stderr
    header, *rows = read_table(tmp_path / "table.csv")
    assert header == ["path", "class", "probability", "doubt", "'@a", "'+b", "사과"]
    assert [row[0] for row in rows] == ["'=1+1.png", "b.png"]
    for row in rows:
        numbers = [float(cell) for cell in row[4:]]
        assert sum(numbers) == pytest.approx(1, abs=1e-5) and float(row[2]) == max(numbers)
        assert row[1] == header[4 + numbers.index(max(numbers))] and row[3] == "unsure"


@pytest.mark.parametrize(
    ("name", "sentence"), [("0.png", "give a file's name that ends in .csv"), ("no/table.csv", "there is no folder")]
)
def test_table_that_cannot_be_written_stops_before_the_work_and_replaces_no_photo(folder, name, sentence):
    before = fingerprint(folder)
    done = call(folder / "any_deploy.onnx", folder / "1.png", "--csv", folder / name)
    assert done.returncode == 1 and sentence in done.stderr and not done.stdout
    assert fingerprint(folder) == before


def sorted_photos(target):
    """List what a folder of sorted photos holds: the folder of each, its name."""
    return sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())


def test_sorting_copies_into_a_folder_per_class_and_overwrites_nothing(folder, photos, tmp_path):
    target, before = tmp_path / "new" / "sorted", fingerprint(photos)
    model = deployed(tmp_path / "net_deploy.onnx", ["fig"] * 3)
    (target / "fig").mkdir(parents=True)
    (target / "fig" / "2.PNG").write_text("another photo")
    done = call(model, photos, "--sort", target)
    assert done.returncode == 0, done.stderr
    assert sorted_photos(target) == ["fig/1 (2).png", "fig/1.png", "fig/2 (2).PNG", "fig/2.PNG"]
    assert (target / "fig" / "2.PNG").read_text() == "another photo"
    assert (target / "fig" / "1 (2).png").read_bytes() == (photos / "b" / "1.png").read_bytes()
    assert f"Copied to {target}: 3, there already: 0" in done.stderr
    assert f"Copied to {target}: 0, there already: 3" in call(model, photos, "--sort", target).stderr
    assert fingerprint(photos) == before


def test_sorting_keeps_doubtful_photos_apart_and_never_leaves_its_folder(photos, tmp_path):
    for threshold, expected in ((1.01, "doubtful_"), (0, ".._.._evil")):
        model = deployed(tmp_path / "net_deploy.onnx", ["../../evil"] * 3, abstain_below=threshold)
        target = tmp_path / f"sorted {threshold}" / "in"
        assert call(model, photos, "--sort", target).returncode == 0
        assert {name.split("/")[0] for name in sorted_photos(target.parent)} == {"in"}
        assert {name.split("/")[0] for name in sorted_photos(target)} == {expected.rstrip("_")}


@pytest.mark.parametrize("place", ["사진 2024", "사진 2024/a/sorted", "."])
def test_sorting_into_the_photos_own_folder_is_refused(photos, tmp_path, place):
    before = fingerprint(photos)
    model = deployed(tmp_path / "net_deploy.onnx", [photos.name, "x", "y"])
    done = call(model, photos, "--sort", tmp_path / place)
    assert done.returncode == 1 and "with the photos: name another folder" in done.stderr and not done.stdout
    assert fingerprint(photos) == before


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
    assert outdated(version).startswith(f"onnxruntime {version} gives wrong predictions") == is_old


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """A project with two runs, named and embedded, whose verdict is to be set: each file has classes of its own."""
    project = copy_project(tmp_path_factory.mktemp("project") / "과일 분류")
    for name in ("mine", ""):
        run = project / "checkpoints" / name
        run.mkdir(exist_ok=True)
        deployed(run / "net@16_deploy.onnx", [f"float {name}"] * 3)
        deployed(run / "net@16_int8_deploy.onnx", [f"int8 {name}"] * 3)
    return project


@pytest.mark.parametrize("name", ["mine", ""])
@pytest.mark.parametrize(("ship", "best"), [("int8", "int8"), ("onnx", "float"), ("pytorch", "float")])
def test_run_py_predicts_with_the_file_that_the_verdict_ships(two_runs, photos, ship, best, name):
    report = {"train": {"arch": "net@16"}, "comparison": {"verdict": {"ship": ship}}}
    (two_runs / "checkpoints" / name / "report.json").write_text(json.dumps(report), encoding="utf-8")
    words = ["--name", name] if name else []
    table, target = photos.parent / "table.csv", photos.parent / "sorted"
    done = run_py(two_runs, "predict", *words, str(photos / "a"), "--csv", str(table), str(photos / "b"))
    assert done.returncode == 0, done.stderr
    assert [line.split("\t")[1] for line in done.stdout.splitlines()] == [f"{best} {name}"] * 3
    assert done.stderr.startswith(f"3 photos, 0 of them doubtful: {best} {name} 3\n") and len(read_table(table)) == 4
    done = run_py(two_runs, "predict", str(photos), "gone.jpg", *words, "--sort", str(target))
    assert done.returncode == 1 and "gone.jpg" in done.stderr and len(sorted_photos(target)) == 3


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["predict", "--name", "mine"], 2, "predict needs photos or folders"),
        (["predict", "a.jpg", "--sorted", "x", "--name", "mine"], 2, "unrecognized arguments: --sorted"),
        (["predict", "a.jpg", "--name", "gone"], 1, "checkpoints/gone holds no verdict"),
        (["page", "--csv", "table.csv"], 2, "--csv and --sort go with predict"),
        (["photo.jpg"], 2, "invalid choice: 'photo.jpg'"),
    ],
)
def test_run_py_says_what_predict_lacks(project, words, code, sentence):
    done = run_py(project, *words)
    assert done.returncode == code and sentence in done.stderr and "Traceback" not in done.stderr
    assert not (project / "checkpoints" / "gone").exists()


def test_help_of_run_py_documents_predict(project):
    said = run_py(project, "--help").stdout
    assert "python run.py predict PHOTO FOLDER --name mine" in said and "--csv FILE" in said and "--sort DIR" in said
