"""The model files that are compared: what they predict, how good that is, and whether other runtimes agree."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pandas as pd
from PIL import Image
from sklearn.utils import gen_batches

from utils import parallel
from utils.checkpoint import load_logits
from utils.compare_models.predictor import Predictor
from utils.config import BATCH, THREADS, project_path, relative, require
from utils.datasets import ImageDataset, evaluation_transform, to_pixels
from utils.files import sha256
from utils.images import scan_folder
from utils.intervals import repeated_score, wilson_interval
from utils.metrics import sqnr_db
from utils.report import read_report
from utils.session import open_session, split_batch
from utils.stopwatch import ratio, time_calls

REFERENCE = "ONNX Runtime"  # as everything else is measured with
AS_WRITTEN = "ONNX Runtime, graph as written"  # of INT8 alone: that float is as exported, `check_parity` has shown
ROUNDS = 8  # of timing in another runtime
Run = Callable[[np.ndarray], np.ndarray]  # images (N, 3, H, W) → logits (N, C)


def model_paths(run: Path, arch: str, others: dict[str, str]) -> dict[str, Path]:
    """Name the files to compare: the three of a run, but none if `arch` is empty, and `others`, name → path."""
    own = {"pytorch": f"fine_tuned_{arch}.pth", "onnx": f"{arch}.onnx", "int8": f"{arch}_int8.onnx"}
    paths = {name: run / file for name, file in own.items()} if arch else {}
    return paths | {name: project_path(path) for name, path in others.items()}


def file_bytes(path: Path) -> int:
    """Count a model's bytes on the disk, with those outside the ``.onnx`` file; InputError where these are missing."""
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
            require(
                model.details.get(name) == models[0].details.get(name),
                f"{relative(model.path)} and {relative(models[0].path)} differ in {name}, so they are not of one run: "
                "run train.ipynb and onnx_quant.ipynb again",
            )


def unsplit_index(folder: Path) -> pd.DataFrame:
    """List a folder's images, for models that this project did not make: columns path, class, group, split.

    All count as test images; each is a group of its own but for exact copies.
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

    Models with the same preprocessing share one pass over the images, each changed by `corrupt` before. Raises
    InputError when a model knows other classes.
    """
    kinds = {name: repr(model.preprocessing) for name, model in models.items()}
    image_sets = {kinds[name]: image_set(model, folder, index, classes, corrupt) for name, model in models.items()}

    def predict(batch: slice) -> dict[str, np.ndarray]:
        rows = range(batch.start, batch.stop)
        images = {kind: np.stack([dataset[row][0].numpy() for row in rows]) for kind, dataset in image_sets.items()}
        logits = {name: model(images[kinds[name]]) for name, model in models.items()}
        for name, model in models.items():
            model.check_classes(classes, logits[name])
        return logits

    batches = list(parallel.run(predict, gen_batches(len(index), BATCH), "predictions", THREADS))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in models}


def load_out_of_fold(run: Path, arch: str, index: pd.DataFrame, **made_from: object) -> dict[str, np.ndarray]:
    """Read what the folds' networks of onnx_quant.ipynb predict for images that they have not seen.

    → logits (N, C) of ``onnx`` and ``int8``, nan where no fold predicted; empty if onnx_quant was set to leave the
    folds out. Raises InputError when split, network or what else is given (recipe=…) are not those of the logits.
    """
    if read_report(run).get("quantization", {}).get("fold_networks") == 0:
        return {}
    made_from |= {"split": sha256(run / "split.csv"), "model": sha256(run / f"fine_tuned_{arch}.pth")}
    return load_logits(run / f"out_of_fold_{arch}.npz", index["path"], **made_from)


def score_models(logits: dict[str, np.ndarray], index: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Score each model's logits (N, C) for the images of `index`; → macro-F1 as score, its interval low, high."""
    labels, groups = index["class"].map(list(classes).index).to_numpy(), index["group"].to_numpy()
    return pd.DataFrame({name: repeated_score(outputs[None], labels, groups) for name, outputs in logits.items()}).T


def with_out_of_fold(scores: pd.DataFrame, train: dict) -> pd.DataFrame:
    """Put the score of train.ipynb's folds, from the report's section `train`, above those of `score_models`."""
    if not train:
        return scores
    row = [train["oof_macro_f1"], *train["oof_macro_f1_ci95"]]
    return pd.concat([pd.DataFrame([row], ["out of fold"], scores.columns), scores])


# --- the same file in other runtimes


def _open_onnxruntime(path: Path, **options) -> Run:
    session = open_session(path, **options)
    return lambda images: session.run(None, {"input": images})[0]


def _open_openvino(path: Path, **config) -> Run:
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": THREADS} | config)
    return lambda images: compiled(images)[0]


RUNTIMES = {  # name → how a file is opened there
    REFERENCE: _open_onnxruntime,
    AS_WRITTEN: partial(_open_onnxruntime, optimize="none"),
    "OpenVINO": _open_openvino,
    "OpenVINO, in float32": partial(_open_openvino, INFERENCE_PRECISION_HINT="f32"),
}


def compare_runtimes(paths: dict[str, Path], images: np.ndarray, names: Sequence[str] | None = None) -> pd.DataFrame:
    """Run each file on images float32 (N, 3, H, W) in each runtime; → a row each, beside ONNX Runtime as it is.

    Columns: runtime, file, agreement with its Wilson interval `ci95`, `flips` (positions of images), sqnr_db of the
    logits, and latency_ratio (median, low, high) for one image, paired by rounds. Without `names`, all that are
    installed; raises InputError for others.
    """
    installed = [name for name in RUNTIMES if "OpenVINO" not in name or find_spec("openvino")]
    lacking = [name for name in names or [] if name not in installed]
    require(not lacking, f"RUNTIMES {lacking}: there are {', '.join(RUNTIMES)}, some by pip install openvino")
    rows = []
    for file, path in paths.items():
        reference = RUNTIMES[REFERENCE](path)
        expected = np.concatenate([reference(batch) for batch in split_batch(images)])
        in_integers = any(node.op_type == "DequantizeLinear" for node in ir.load(path).graph)
        left_out = {REFERENCE} if in_integers else {REFERENCE, AS_WRITTEN}
        others = [name for name in names or installed if name not in left_out]
        for name in parallel.progress(others, f"{file} elsewhere"):
            run = RUNTIMES[name](path)
            logits = np.concatenate([run(batch) for batch in split_batch(images)])
            flips = np.flatnonzero(logits.argmax(1) != expected.argmax(1)).tolist()
            same = len(images) - len(flips)
            calls = {"here": partial(reference, images[:1]), "there": partial(run, images[:1])}
            times = time_calls(calls, range(ROUNDS))
            agreement = same / len(images), wilson_interval(same, len(images)), flips
            rows.append((name, file, *agreement, sqnr_db(expected, logits), ratio(times["here"], times["there"])))
    columns = ["runtime", "file", "agreement", "ci95", "flips", "sqnr_db", "latency_ratio"]
    return pd.DataFrame(rows, columns=columns)
