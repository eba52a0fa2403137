"""The images that are asked about, and what each model answers."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.utils import gen_batches
from torch import Tensor

from utils import parallel
from utils.compare_models.predictor import Predictor
from utils.config import BATCH, THREADS
from utils.cross_validation import load_answers
from utils.datasets import ImageDataset, evaluation_transform
from utils.files import sha256
from utils.images import scan_folder
from utils.report import read_report


def unsplit_index(folder: Path) -> pd.DataFrame:
    """List a folder's images, for models that this project did not make: columns path, class, group, split.

    All count as test images, as long as the models never saw them; each is a group of its own but for exact copies.
    """
    good, _ = scan_folder(folder)
    return good.assign(group=good["pixels"], split="test")[["path", "class", "group", "split"]]


def answer_all(
    models: dict[str, Predictor],
    folder: Path,
    index: pd.DataFrame,
    classes: Sequence[str],
    spoil: Callable | None = None,
) -> dict[str, np.ndarray]:
    """Let each model answer all images of `index`, paths in `folder`; → logits (N, C) each, in the order of `models`.

    Models with the same preprocessing share one pass over the images, a few of which are in memory at a time. `spoil`
    changes each image (PIL) before it is prepared. Raises InputError when a model answers with other classes.
    """
    alike: dict[str, list[str]] = {}
    for name, model in models.items():
        alike.setdefault(repr(model.preprocessing), []).append(name)
    logits: dict[str, list[np.ndarray]] = {name: [] for name in models}
    for names in alike.values():
        transform = partial(_prepare, evaluation_transform(models[names[0]].preprocessing), spoil)
        asked = partial(_answer, ImageDataset(folder, index, classes, transform), [models[name] for name in names])
        for answers in parallel.run(asked, gen_batches(len(index), BATCH), "answers", THREADS):
            for name, answer in zip(names, answers, strict=True):
                models[name].check_classes(classes, answer)
                logits[name].append(answer)
    return {name: np.concatenate(parts) for name, parts in logits.items()}


def _prepare(transform: Callable, spoil: Callable | None, image: Image.Image) -> Tensor:
    return transform(spoil(image) if spoil else image)


def _answer(dataset: ImageDataset, models: Sequence[Predictor], batch: slice) -> list[np.ndarray]:
    """Prepare some images and let each model answer them."""
    images = np.stack([dataset[position][0].numpy() for position in range(batch.start, batch.stop)])
    return [model(images) for model in models]


def load_out_of_fold(run: Path, arch: str, index: pd.DataFrame, recipe: object) -> dict[str, np.ndarray]:
    """Read what the folds' networks of onnx_quant.ipynb answer to images that they have not seen.

    → logits (N, C) of ``onnx`` and ``int8``, nan where no fold answered; empty if onnx_quant was told to leave the
    folds out. Raises InputError when split, network or INT8 `recipe` are no longer those that the answers belong to.
    """
    if read_report(run).get("quantization", {}).get("fold_networks") == 0:
        return {}
    return load_answers(
        run / f"out_of_fold_{arch}.npz",
        index["path"],
        split=sha256(run / "split.csv"),
        model=sha256(run / f"fine_tuned_{arch}.pth"),
        recipe=recipe,
    )
