"""The kit: carried to a device, checked there with nothing but its own folder, and judged where the model was made."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import read_report, run_py


@pytest.fixture(scope="module")
def device(project, embedded, tmp_path_factory) -> Path:
    """The kit of the embedded run, unpacked far from the project."""
    done = run_py(project, "kit")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path_factory.mktemp("device") / "kit"
    shutil.unpack_archive(project / "runs" / "kit.zip", folder)
    return folder


def check(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-I", folder / "check.py", *arguments]
    return subprocess.run(command, cwd=folder.parent, capture_output=True, encoding="utf-8")


def photos(folder: Path) -> dict:
    return json.loads((folder / "expected.json").read_text(encoding="utf-8"))["photos"]


def test_check_finds_the_same_predictions_and_judge_puts_them_beside_the_evidence(project, device):
    done = check(device)
    count = len(photos(device))
    assert done.returncode == 0 and done.stdout.count(f"the same predictions on {count} of {count} photos") == 2
    answers = sorted(device.glob("answers_*.json"))
    judged = run_py(project, "judge", *map(str, answers))
    assert judged.returncode == 0, judged.stderr
    rows = read_report(project)["comparison"]["elsewhere"]
    assert [row["agreement"] for row in rows] == [1, 1] and all(row["ci95"][0] > 0.8 for row in rows)
    assert all(row["latency_ms"] > 0 and 0 < row["macro_f1_loss"] < 1 for row in rows)
    card = (project / "checkpoints" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "On other devices" in card and rows[0]["runtime"] in card
    run_py(project, "judge", str(answers[0]))
    assert len(read_report(project)["comparison"]["elsewhere"]) == 2, "the same device again replaces its row"


def test_photos_of_the_kit_are_of_the_test_part_and_say_nothing_of_who_took_them(project, device):
    table = {row["path"]: row for row in csv.DictReader((project / "checkpoints" / "split.csv").open(encoding="utf-8"))}
    assert {table[photo["path"]]["split"] for photo in photos(device).values()} == {"test"}
    assert sorted(path.name for path in (device / "photos").iterdir()) == sorted(photos(device))


def write_table(device: Path, change: int, logits: bool = False) -> Path:
    """Write what another runtime would, with so many predictions that differ."""
    path = device / "table.csv"
    names = json.loads((device / "expected.json").read_text(encoding="utf-8"))["classes"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["photo", *names])
        for number, (name, photo) in enumerate(photos(device).items()):
            values = np.array(next(iter(photo["probabilities"].values())))
            values = np.roll(values, 1) if number < change else values
            writer.writerow([name, *(np.log(values + 1e-9) if logits else values)])
    return path


@pytest.mark.parametrize("logits", [False, True])
def test_what_another_runtime_predicted_comes_as_a_table(project, device, logits):
    path = write_table(device, 3, logits)
    done = check(device, "--csv", str(path), "--runtime", "LiteRT 2.1", "--ms", "7")
    count = len(photos(device))
    assert done.returncode == 1 and f"the same predictions on {count - 3} of {count} photos" in done.stdout
    assert done.stdout.count("expected") == 3
    (answers,) = device.glob("answers_*LiteRT*.json")
    judged = run_py(project, "judge", str(answers))
    assert judged.returncode == 0 and "LiteRT 2.1" in judged.stdout
    (row,) = [row for row in read_report(project)["comparison"]["elsewhere"] if row["runtime"] == "LiteRT 2.1"]
    assert row["agreement"] == pytest.approx(1 - 3 / count) and row["latency_ms"] == 7


def test_table_that_lacks_something_is_refused_by_name(device):
    path = write_table(device, 0)
    path.write_text(path.read_text(encoding="utf-8").replace("tomato", "tomatoe"), encoding="utf-8")
    done = check(device, "--csv", str(path))
    assert done.returncode == 1 and "no column ['tomato']" in done.stderr


def test_answers_about_another_file_are_refused(project, device, tmp_path):
    check(device)
    answers = json.loads(next(device.glob("answers_*deploy*.json")).read_text(encoding="utf-8"))
    (tmp_path / "answers.json").write_text(json.dumps(answers | {"sha256": "0"}), encoding="utf-8")
    for path, words in ((tmp_path / "answers.json", "about another file"), (tmp_path / "none.json", "does not exist")):
        done = run_py(project, "judge", str(path))
        assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr


def test_float_file_for_other_converters_has_a_fixed_batch(device):
    (path,) = device.glob("*_batch1.onnx")
    model = onnx.load(path)
    assert [value.type.tensor_type.shape.dim[0].dim_value for value in (*model.graph.input, *model.graph.output)] == [
        1,
        1,
    ]
    images = np.load(device / "calibration.npz")["images"]
    assert images.dtype == np.uint8 and images.shape[1:] == (64, 64, 3)
