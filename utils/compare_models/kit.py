"""A folder to carry to a device: the files that ship, photos of the test part, and a script that checks them there."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
from PIL import Image

from utils.config import CHECKPOINTS, ROOT, project_path
from utils.files import sha256, whole_file
from utils.images import read_image, resize
from utils.report import TEMPLATES, read_report, render, shipped_file
from utils.session import open_session, read_metadata
from utils.split import load_index, sample_test_part

PHOTOS = 100  # of the test part, at most
SIDE = 1024  # pixels a side of these, at most
CALIBRATION = 32  # photos of the training part for other quantizers


def kit_folder(name: str) -> Path:
    """Return the folder of a run's kit."""
    return ROOT / "runs" / name / "kit"


def write_kit(name: str, data: str = "") -> Path:
    """Write ``runs/<name>/kit`` and ``kit.zip`` beside it; → the folder.

    `data` is the folder of the run's photos, if they have been moved. Raises InputError when the run is not complete,
    or its photos are gone or have changed.
    """
    run, folder = CHECKPOINTS / name, kit_folder(name)
    shipped = shipped_file(name)
    report = read_report(run)
    photos = project_path(data or report["dataset"]["folder"])
    index = load_index(run / "split.csv", photos)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "photos").mkdir(parents=True)
    arch = report["train"]["arch"]
    deployed = [path for path in (run / f"{arch}_int8_deploy.onnx", run / f"{arch}_deploy.onnx") if path.exists()]
    bare = [path for path in (run / f"{arch}_int8.onnx", run / f"{arch}.onnx") if path.exists()]
    for path in (*deployed, *bare):
        shutil.copy(path, folder)
    float_file = folder / f"{arch}_batch1.onnx"
    fix_batch(run / f"{arch}.onnx", float_file)
    details = read_metadata(open_session(shipped))
    count = _write_calibration(folder / "calibration.npz", photos, index, details["preprocessing"])
    chosen = _copy_photos(folder / "photos", photos, index)
    _write_expected(folder, deployed, shipped, details["classes"], chosen)
    shutil.copy(TEMPLATES / "check.py", folder)
    text = render(
        "kit.md",
        name=arch,
        photos=len(chosen),
        deployed=[path.name for path in deployed],
        bare=[path.name for path in bare] + [float_file.name],
        float_file=float_file.name,
        shipped=shipped.name,
        classes=details["classes"],
        preprocessing=details["preprocessing"],
        side=details["preprocessing"]["image_size"],
        calibration=count,
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


def _copy_photos(target: Path, folder: Path, index: pd.DataFrame) -> pd.DataFrame:
    """Write photos of the test part, all classes in turn, as any device reads them; → their rows, with a column `name`.

    They are upright, sRGB and without metadata, so that only the model is compared, and no reader of photos.
    """
    chosen = sample_test_part(index, PHOTOS).reset_index(drop=True)
    chosen["name"] = [f"{number:03d}.png" for number in range(len(chosen))]
    for name, path in zip(chosen["name"], chosen["path"], strict=True):
        image = read_image(folder / path)
        image.thumbnail((SIDE, SIDE))
        image.save(target / name, "PNG")
    return chosen


def _write_expected(
    folder: Path, deployed: list[Path], shipped: Path, classes: list[str], chosen: pd.DataFrame
) -> None:
    """Write what each file says of each photo, with sums that cannot overflow on any CPU."""
    photos = {
        row["name"]: {"path": row["path"], "class": row["class"], "group": row["group"], "probabilities": {}}
        for _, row in chosen.iterrows()
    }
    for path in deployed:
        session = open_session(path, precise=True)
        for name, photo in photos.items():
            with Image.open(folder / "photos" / name) as image:
                pixels = np.asarray(image)[None]
            (probabilities,) = session.run(["probabilities"], {"image": pixels})[0]
            photo["probabilities"][path.name] = probabilities.tolist()
    files = {path.name: sha256(path) for path in deployed}
    expected = {"shipped": shipped.name, "files": files, "classes": classes, "photos": photos}
    (folder / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False), encoding="utf-8")
