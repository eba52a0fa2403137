"""The kit: files, photos and a check to carry to a device, and what the device predicts, put beside the evidence."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pandas as pd

from utils.compare_models.model_card import write_model_card
from utils.compare_models.paired import compare_predictions
from utils.config import CHECKPOINTS, ROOT, InputError, project_path, relative
from utils.files import sha256, whole_file
from utils.images import read_image, resize
from utils.intervals import wilson_interval
from utils.report import TEMPLATES, extend_report, read_report, render, shipped_file
from utils.session import open_session, read_metadata
from utils.split import load_index, sample_test_part

PHOTOS = 100  # of the test part, at most
SIDE = 1024  # pixels a side of these, at most
CALIBRATION = 32  # photos of the training part for other quantizers
DEVICE = ["machine", "system", "cpu", "runtime", "file"]  # tells the rows of a report apart


def kit_folder(name: str) -> Path:
    """Return the folder of a run's kit."""
    return ROOT / "runs" / name / "kit"


def write_kit(name: str, data: str = "") -> Path:
    """Write ``runs/<name>/kit`` and ``kit.zip`` beside it; → the folder.

    `data` is the folder of the run's photos, if they have been moved. Raises InputError when the run is not complete,
    or its photos are gone or have changed.
    """
    run, folder, shipped = CHECKPOINTS / name, kit_folder(name), shipped_file(name)
    report = read_report(run)
    arch = report["train"]["arch"]
    photos = project_path(data or report["dataset"]["folder"])
    index = load_index(run / "split.csv", photos)
    details = read_metadata(open_session(shipped))
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "photos").mkdir(parents=True)
    deployed = [f"{arch}_int8_deploy.onnx", f"{arch}_deploy.onnx"]
    bare = [f"{arch}_int8.onnx", f"{arch}.onnx"]
    for file in (*deployed, *bare):
        shutil.copy(run / file, folder)
    float_file = f"{arch}_batch1.onnx"
    fix_batch(run / f"{arch}.onnx", folder / float_file)
    expected = {
        "shipped": shipped.name,
        "files": {file: sha256(folder / file) for file in deployed},
        "classes": details["classes"],
        "photos": _write_photos(folder, photos, index, deployed),
    }
    (folder / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False), encoding="utf-8")
    shutil.copy(TEMPLATES / "check.py", folder)
    text = render(
        "kit.md",
        name=arch,
        expected=expected,
        bare=[*bare, float_file],
        float_file=float_file,
        preprocessing=details["preprocessing"],
        calibration=_write_calibration(folder / "calibration.npz", photos, index, details["preprocessing"]),
    )
    (folder / "README.md").write_text(text + "\n", encoding="utf-8")
    with whole_file(folder.with_suffix(".zip")) as temporary:
        shutil.make_archive(str(temporary.with_suffix("")), "zip", folder)
    return folder


def fix_batch(source: Path, target: Path) -> None:
    """Copy a file for converters that take no batch of any size: one image a call."""
    model = onnx.load(source)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]  # shapes of a batch that has a name
    onnx.save(onnx.shape_inference.infer_shapes(model), target)


def _write_calibration(path: Path, folder: Path, index: pd.DataFrame, preprocessing: dict) -> int:
    """Write resized photos of the training part, equally far apart in the table; → how many."""
    train = index.loc[index["split"] == "train", "path"]
    chosen = train[:: math.ceil(len(train) / CALIBRATION)]
    size = (preprocessing["image_size"],) * 2
    images = [resize(read_image(folder / name), size, preprocessing["interpolation"]) for name in chosen]
    np.savez_compressed(path, images=np.stack(images))
    return len(chosen)


def _write_photos(folder: Path, photos: Path, index: pd.DataFrame, files: Sequence[str]) -> dict[str, dict]:
    """Write photos of the test part, all classes in turn, as any device reads them; → by name, what each file predicts.

    They are upright, sRGB and without metadata, so that only the model is compared, and no reader of photos. The files
    run with sums that cannot overflow on any CPU.
    """
    sessions = {file: open_session(folder / file, precise=True) for file in files}
    expected = {}
    for number, (_, row) in enumerate(sample_test_part(index, PHOTOS).iterrows()):
        image, name = read_image(photos / row["path"]), f"{number:03d}.png"
        image.thumbnail((SIDE, SIDE))
        image.save(folder / "photos" / name)
        probabilities = {}
        for file, session in sessions.items():
            probabilities[file] = session.run(["probabilities"], {"image": np.asarray(image)[None]})[0][0].tolist()
        expected[name] = row[["path", "class", "group"]].to_dict() | {"probabilities": probabilities}
    return expected


def judge(files: Sequence[Path], name: str) -> list[dict]:
    """Compare what devices predicted (``answers_*.json`` of the kit) with what is expected; → a row a file.

    A row has the keys of DEVICE, images, agreement with the same file here and its interval (ci95), the loss of
    macro-F1 against the float file here that is excluded, as the verdict bounds it, and latency_ms. Rows go into the
    run's report, in place of earlier ones of the same device, runtime and file, and into its model card. Raises
    InputError for a file that is not of this run's kit.
    """
    expected = _read(kit_folder(name) / "expected.json", "run `python run.py kit` to write it")
    rows = [_compare(path, _read(path, "give a file that check.py wrote"), expected) for path in files]
    run = CHECKPOINTS / name
    known = read_report(run).get("comparison", {}).get("elsewhere", [])
    latest = {tuple(row[key] for key in DEVICE): row for row in [*known, *rows]}
    extend_report(run, "comparison", {"elsewhere": list(latest.values())})
    write_model_card(run)
    return rows


def _read(path: Path, advice: str) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{relative(path)} does not exist or cannot be read: {advice}") from None


def _compare(path: Path, answers: dict, expected: dict) -> dict:
    photos, file = expected["photos"], answers.get("file")
    known = file in expected["files"] and answers["sha256"] == expected["files"][file]
    if not known or set(answers["photos"]) != set(photos):
        raise InputError(f"{path} is about another file, or other photos: check anew with the present kit")
    here = {name: np.array([photo["probabilities"][name] for photo in photos.values()]) for name in expected["files"]}
    found = np.array([answers["photos"][name] for name in photos])
    reference = next(values for name, values in here.items() if "_int8_" not in name)  # the float file
    logits, other = (np.log(np.maximum(values, 1e-12)) for values in (reference, found))  # up to a constant of an image
    compared = compare_predictions(pd.DataFrame(photos.values()), logits, other, expected["classes"])
    agreeing = int((found.argmax(axis=1) == here[file].argmax(axis=1)).sum())
    return {key: answers.get(key) for key in (*DEVICE, "latency_ms")} | {
        "images": len(photos),
        "agreement": agreeing / len(photos),
        "ci95": wilson_interval(agreeing, len(photos)),
        "macro_f1_loss": compared["macro_f1_loss"]["bound"],
    }
