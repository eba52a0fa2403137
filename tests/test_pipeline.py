"""The four notebooks, end to end, as a user runs them."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import QUICK, ROOT, copy_project, fill_folder, fingerprint, read_report, run_py
from PIL import Image

COUNTS = {"사과": 24, "cherry pie": 24, "tomato": 9}
SMALL = ["-p", "FINE_TUNE_EPOCHS=2", *QUICK, "-p", "NETWORKS="]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of someone's own, with what is found in such folders."""
    folder = fill_folder(tmp_path_factory.mktemp("photos") / "내 사진", COUNTS)
    good = (folder / "tomato" / "000.jpg").read_bytes()
    (folder / "tomato" / "cut.jpg").write_bytes(good[: len(good) // 2])
    (folder / "사과" / "notes.jpg").write_text("not an image")
    (folder / "tomato" / "IMG_1.MOV").write_bytes(b"a film")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "000-checkpoint.jpg").write_bytes(good)
    return folder


@pytest.fixture(scope="module")
def result(project, photos):
    before = fingerprint(photos)
    done = run_py(project, "--data", str(photos), "--name", "mine", *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert fingerprint(photos) == before, "the data folder was changed"
    return done


def test_prints_a_line_per_notebook_a_table_and_a_verdict(result):
    lines = result.stdout.splitlines()
    for name in ("EDA", "train", "onnx_quant", "compare_models", "pytorch", "onnx", "int8", "Use"):
        assert any(line.startswith(name) for line in lines), f"no line for {name} in\n{result.stdout}"
    assert not [line for line in lines if len(line) > 100]


def test_names_all_bad_files_and_uses_the_good_ones(project, result):
    dataset = read_report(project, "mine")["dataset"]
    assert {bad["path"] for bad in dataset["refused"]} == {"tomato/cut.jpg", "사과/notes.jpg"}
    said = " ".join(result.stdout.split())
    assert all(f"refused: {bad['path']}: {bad['reason'].partition(' (')[0]}" in said for bad in dataset["refused"])
    assert dataset["skipped"] == {".mov": 1} and "skipped, as no images: .mov 1" in said
    assert dataset["classes"] == COUNTS
    assert dataset["minority"] == ["tomato"]


def test_code_of_the_card_says_of_a_photo_what_predict_says(project, result, photos, tmp_path):
    folder = project / "checkpoints" / "mine"
    (code,) = re.findall(r"```python\n(.+?)```", (folder / "MODEL_CARD.md").read_text(encoding="utf-8"), re.DOTALL)
    for file in folder.glob("*_deploy.onnx"):
        shutil.copy(file, tmp_path)
    photo = shutil.copy(photos / "cherry pie" / "000.jpg", tmp_path / "photo.jpg")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, encoding="utf-8")
    name, probability = done.stdout.rsplit(maxsplit=1)
    said = run_py(project, "predict", str(photo), "--name", "mine").stdout.split("\t")
    assert (name, f"{float(probability):.1%}") == (said[1], said[2].strip()), done.stderr


def test_report_has_what_others_rely_on(project, result):
    report = read_report(project, "mine")
    keys = {
        "dataset": "images classes corrections refused skipped groups random_split_leaks leaks separability minority "
        "split arch networks",
        "train": "arch best_epoch valid_macro_f1 test_macro_f1 test_macro_f1_ci95 oof_macro_f1 oof_macro_f1_ci95 "
        "per_class learning_curve novelty seconds",
        "quantization": "parity_max_abs_diff cpu recipe candidates leak_delta",
        "comparison": "models agreement flips mcnemar_p macro_f1_delta_ci95 verdict machine",
    }
    for section, names in keys.items():
        assert set(names.split()) <= set(report[section]), section
    assert report["dataset"]["images"] == sum(report["dataset"]["split"].values()) == sum(COUNTS.values())
    assert report["quantization"]["parity_max_abs_diff"] <= 1e-3  # of logits that reach hundreds where all is easy
    for model in report["comparison"]["models"].values():
        assert model["ci95"][0] <= model["macro_f1"] <= model["ci95"][1]
        assert model["latency_ms"]["1"]["p50"] <= model["latency_ms"]["1"]["p99"]


def test_deployed_file_has_novelty_where_it_was_shown_to_work(project, result):
    report, folder = read_report(project, "mine"), project / "checkpoints" / "mine"
    novelty = report["train"]["novelty"]
    assert {"auroc", "caught", "kept", "threshold"} <= set(novelty)
    (deployed,) = folder.glob("*_int8_deploy.onnx")
    outputs = [value.name for value in onnx.load(deployed).graph.output]
    has_it = novelty["works"] and report["quantization"]["deploy"]["unknown_agreement"] >= 0.99
    assert outputs == ["probabilities", *(["novelty"] if has_it else [])]
    checkpoint = torch.load(folder / "fine_tuned_conv_net.pth", weights_only=True)
    assert checkpoint.get("novelty_above") == (novelty["threshold"] if novelty["works"] else None)


def test_checkpoint_can_be_opened_by_anyone(project, result):
    checkpoint = torch.load(project / "checkpoints" / "mine" / "fine_tuned_conv_net.pth", weights_only=True)
    assert checkpoint["arch"] == "conv_net"
    assert checkpoint["classes"] == sorted(COUNTS)
    assert {"state_dict", "preprocessing", "split_hash", "metrics", "format_version"} <= set(checkpoint)


@pytest.mark.parametrize("name", ["conv_net.onnx", "conv_net_int8.onnx"])
def test_onnx_file_takes_any_batch_and_explains_itself(project, result, name):
    path = project / "checkpoints" / "mine" / name
    onnx.checker.check_model(onnx.load(path), full_check=True)
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    for batch in (1, 2, 7):
        (logits,) = session.run(["output"], {"input": np.zeros((batch, 3, 64, 64), np.float32)})
        assert logits.shape == (batch, 3)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == sorted(COUNTS)
    assert json.loads(metadata["preprocessing"])["image_size"] == 64


def test_second_run_gives_the_same_numbers(project, photos, result):
    def numbers():
        report = read_report(project, "mine")
        del report["train"]["seconds"]
        models = report["comparison"]["models"].values()
        return [
            report["dataset"],
            report["train"],
            [{key: each[key] for key in ("recipe", "agreement")} for each in report["quantization"]["candidates"]],
            report["quantization"]["leak_delta"],
            report["comparison"]["agreement"],
            [(model["macro_f1"], model["ci95"], model["bytes"]) for model in models],
        ]

    first = numbers()
    weights = (project / "checkpoints" / "mine" / "conv_net_int8.onnx").read_bytes()
    # from another folder, with an encoding that cannot write Hangul
    done = run_py(project, "--data", str(photos), "--name", "mine", *SMALL, LC_ALL="C", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stdout + done.stderr
    assert numbers() == first
    assert (project / "checkpoints" / "mine" / "conv_net_int8.onnx").read_bytes() == weights


def check_fruit(report: dict) -> None:
    assert report["dataset"]["classes"] == {"apple": 127, "cherry": 127, "tomato": 50}
    assert report["dataset"]["minority"] == ["tomato"]
    assert report["train"]["oof_macro_f1"] > 0.7
    assert report["quantization"]["parity_max_abs_diff"] <= 1e-3  # of logits that reach hundreds where all is easy
    assert report["comparison"]["agreement"] >= 0.98


def test_embedded_fruit_is_told_apart_and_survives_int8(project, embedded):
    report = read_report(project)
    check_fruit(report)
    assert report["dataset"]["leaks"] == 0 < report["dataset"]["random_split_leaks"]
    assert "Caution" not in embedded.stdout


def test_one_fruit_per_class_is_called_what_it_is(project):
    photos = ROOT.parent / "shared" / "data" / "fruits360" / "train"
    if not photos.is_dir():  # without the real photos, films of three rendered fruits
        photos = film_folder(project.parent / "films")
    done = run_py(project, "--data", str(photos), "--name", "films", "--quick", *QUICK)
    assert done.returncode == 0, done.stdout + done.stderr
    report = read_report(project, "films")
    assert "Left out by --quick" in done.stdout and "learning_curve" not in report["train"]
    check_fruit(report)
    assert report["train"]["test_macro_f1"] == 1.0
    assert "the scores say little" in " ".join(done.stdout.split())


def film_folder(folder: Path) -> Path:
    """Film one embedded fruit per class: 127, 127 and 50 frames, each turned a little further."""
    for name, count in {"apple": 127, "cherry": 127, "tomato": 50}.items():
        (folder / name).mkdir(parents=True)
        fruit = Image.open(ROOT / "data" / "train" / name / f"{name}_05_00.jpg")
        for frame in range(count):
            turned = fruit.rotate(frame, resample=Image.Resampling.BILINEAR, fillcolor="white")
            turned.save(folder / name / f"{frame:03d}.jpg", quality=92)
    return folder


def run_first_cells(project: Path, name: str, count: int, **settings) -> subprocess.CompletedProcess:
    """Run a notebook's first code cells with other settings, as plain Python."""
    notebook = json.loads((project / f"{name}.ipynb").read_text(encoding="utf-8"))
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"][:count]
    code.insert(2, "\n".join(f"{key} = {value!r}" for key, value in settings.items()))
    (project / "first_cells.py").write_text("\n".join(code), encoding="utf-8")
    return subprocess.run([sys.executable, "first_cells.py"], cwd=project, capture_output=True, encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("train", {"AUGMENT": "some"}, "AUGMENT is 'some': it must be one of 'minority', 'none', 'all'"),
        ("train", {"MINORITY": ["kiwi"]}, "MINORITY ['kiwi']: there are only cherry pie, tomato, 사과"),
        ("compare_models", {"PAIR": ("onnx", "tflite")}, "both must be among pytorch, onnx, int8"),
        ("compare_models", {"MARGIN": 0}, "MARGIN is 0: it must be a number above 0 and at most 1"),
    ],
)
def test_setting_that_makes_no_sense_is_named(project, result, photos, name, settings, sentence):
    done = run_first_cells(project, name, 4, DATA=str(photos), NAME="mine", **settings)
    assert done.returncode != 0 and sentence in done.stderr, done.stderr


def test_changed_data_stops_the_later_notebooks(tmp_path, photos):
    project = copy_project(tmp_path / "project")
    data = fill_folder(tmp_path / "data", {"a": 9, "b": 9})
    settings = "{'DATA': sys.argv[1], 'NAME': 'x', 'ARCH': 'conv_net'}"
    split_it = f"import run, sys; sys.exit(run.execute('EDA', {settings}, run.ROOT / 'EDA.ipynb'))"
    assert subprocess.run([sys.executable, "-c", split_it, data], cwd=project).returncode == 0
    (data / "a" / "000.jpg").write_bytes((data / "b" / "000.jpg").read_bytes())
    (data / "a" / "001.jpg").unlink()
    done = run_first_cells(project, "train", 4, DATA=str(data), NAME="x")
    assert "missing: a/001.jpg; changed: a/000.jpg" in done.stderr
    assert "run EDA.ipynb again" in done.stderr
