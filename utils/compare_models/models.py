"""The model files that are compared, the images they are compared on, and their logits."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pandas as pd
from PIL import Image
from sklearn.utils import gen_batches

from utils import parallel
from utils.compare_models.predictor import Predictor
from utils.config import BATCH, THREADS, InputError, project_path, relative, require
from utils.cross_validation import load_logits
from utils.datasets import ImageDataset, evaluation_transform, to_pixels
from utils.files import sha256
from utils.images import scan_folder
from utils.intervals import macro_f1_interval
from utils.metrics import macro_f1
from utils.report import read_report


def model_paths(run: Path, arch: str, others: dict[str, str]) -> dict[str, Path]:
    """Name the files to compare: the three of a run, but none if `arch` is empty, and `others`, name → path."""
    own = {"pytorch": f"fine_tuned_{arch}.pth", "onnx": f"{arch}.onnx", "int8": f"{arch}_int8.onnx"}
    paths = {name: run / file for name, file in own.items()} if arch else {}
    return paths | {name: project_path(path) for name, path in others.items()}


def file_bytes(path: Path) -> int:
    """Count a model's bytes on the disk, those outside the ``.onnx`` file included.

    Raises InputError naming the external file that is missing, as when only the ``.onnx`` has been moved.
    """
    files = {path}
    if path.suffix == ".onnx":
        with suppress(Exception):  # of many kinds: opening the model says what is wrong with a file
            tensors = [value.const_value for value in ir.load(path).graph.initializers.values()]
            files |= {Path(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
    missing = sorted(file.name for file in files - {path} if not file.is_file())
    require(not missing, f"{relative(path)} needs {', '.join(missing)} beside it, which is not there: copy it too")
    return sum(file.stat().st_size for file in files if file.exists())


def check_alike(models: Sequence[Predictor]) -> None:
    """Raise InputError unless all files stem from one run: the same preprocessing and the same split."""
    for model in models[1:]:
        for name in ("preprocessing", "split_hash"):
            if model.details.get(name) != models[0].details.get(name):
                raise InputError(
                    f"{relative(model.path)} and {relative(models[0].path)} differ in {name}, so they are not of one "
                    "run: run train.ipynb and onnx_quant.ipynb again"
                )


def unsplit_index(folder: Path) -> pd.DataFrame:
    """List a folder's images, for models that this project did not make: columns path, class, group, split.

    All count as test images, as long as the models never saw them; each is a group of its own but for exact copies.
    """
    good, _ = scan_folder(folder)
    return good.assign(group=good["pixels"], split="test")[["path", "class", "group", "split"]]


def image_set(
    model: Predictor,
    folder: Path,
    index: pd.DataFrame,
    classes: Sequence[str],
    corrupt: Callable[[Image.Image], Image.Image] | None = None,
) -> ImageDataset:
    """List the images of `index`, paths in `folder`, as a model takes them; `corrupt` changes each before that."""
    prepare = evaluation_transform(model.preprocessing)
    transform = (lambda image: prepare(corrupt(image))) if corrupt else prepare
    return ImageDataset(folder, index, classes, transform)


def load_pictures(model: Predictor, folder: Path, index: pd.DataFrame, classes: Sequence[str]) -> list[np.ndarray]:
    """Read images as a model sees them, to look at; → pixels (H, W, 3) of each."""
    return [to_pixels(image, model.preprocessing) for image, _ in image_set(model, folder, index, classes)]


def predict_all(
    models: dict[str, Predictor],
    folder: Path,
    index: pd.DataFrame,
    classes: Sequence[str],
    corrupt: Callable[[Image.Image], Image.Image] | None = None,
) -> dict[str, np.ndarray]:
    """Let each model predict all images of `index`, paths in `folder`; → logits (N, C) each, in the order of `models`.

    Models with the same preprocessing share one pass over the images, a few of which are in memory at a time. `corrupt`
    changes each image before it is prepared. Raises InputError when a model knows other classes.
    """
    image_sets = {}
    for model in models.values():
        image_sets[repr(model.preprocessing)] = image_set(model, folder, index, classes, corrupt)
    predict = partial(_predict, models, image_sets, classes)
    batches = list(parallel.run(predict, gen_batches(len(index), BATCH), "predictions", THREADS))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in models}


def _predict(
    models: dict[str, Predictor], image_sets: dict[str, ImageDataset], classes: Sequence[str], batch: slice
) -> dict[str, np.ndarray]:
    """Prepare some images, once for all models that take them alike, and let each model predict them; → its logits."""
    rows = range(batch.start, batch.stop)
    images = {key: np.stack([dataset[row][0].numpy() for row in rows]) for key, dataset in image_sets.items()}
    logits = {name: model(images[repr(model.preprocessing)]) for name, model in models.items()}
    for name, model in models.items():
        model.check_classes(classes, logits[name])
    return logits


def load_out_of_fold(run: Path, arch: str, index: pd.DataFrame, recipe: object) -> dict[str, np.ndarray]:
    """Read what the folds' networks of onnx_quant.ipynb predict for images that they have not seen.

    → logits (N, C) of ``onnx`` and ``int8``, nan where no fold predicted; empty if onnx_quant was set to leave the
    folds out. Raises InputError when split, network or INT8 `recipe` are no longer those that the logits belong to.
    """
    if read_report(run).get("quantization", {}).get("fold_networks") == 0:
        return {}
    return load_logits(
        run / f"out_of_fold_{arch}.npz",
        index["path"],
        split=sha256(run / "split.csv"),
        model=sha256(run / f"fine_tuned_{arch}.pth"),
        recipe=recipe,
    )


def score_models(logits: dict[str, np.ndarray], index: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Score each model's logits (N, C) for the images of `index`.

    → a row each: macro-F1 as `score`, and its 95 % interval by group, `low` and `high`.
    """
    labels, groups = index["class"].map(list(classes).index).to_numpy(), index["group"].to_numpy()
    rows = {}
    for name, outputs in logits.items():
        predictions = outputs.argmax(axis=1)
        interval = macro_f1_interval(labels, predictions, len(classes), groups)
        rows[name] = macro_f1(labels, predictions, len(classes)), *interval
    return pd.DataFrame.from_dict(rows, orient="index", columns=["score", "low", "high"])


def with_out_of_fold(scores: pd.DataFrame, train: dict) -> pd.DataFrame:
    """Put the score of train.ipynb's folds, from the report's section `train`, above those of `score_models`."""
    if not train:
        return scores
    row = [train["oof_macro_f1"], *train["oof_macro_f1_ci95"]]
    return pd.concat([pd.DataFrame([row], ["out of fold"], scores.columns), scores])
