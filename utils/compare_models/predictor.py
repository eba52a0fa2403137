"""One interface for every model file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.config import THREADS, InputError, listing, relative

if TYPE_CHECKING:  # processes that are timed import this module and must stay small
    import pandas as pd

    from utils.datasets import ImageDataset

BATCH = 64  # images per call when only the answers matter
PREPROCESSING = {"image_size", "interpolation", "mean", "std"}


class Predictor:
    """A model file (``.pth`` or ``.onnx``) as a function: images float32 (N, 3, H, W) → logits (N, C), on the CPU.

    `details` holds what the file says of itself, such as classes and preprocessing. `preprocessing` is taken for a file
    that says nothing of it, so that ONNX files of any origin can be opened: one float32 input (N, 3, H, W), its batch
    free or fixed, whatever its name; of several outputs the first one counts.
    """

    def __init__(self, path: Path, threads: int = THREADS, preprocessing: dict | None = None):
        self.path = path
        if path.suffix == ".onnx":
            self._open_onnx(path, threads)
        elif path.suffix == ".pth":
            self._open_checkpoint(path, threads)
        else:
            raise InputError(f"{relative(path)}: a model file ends in .pth or .onnx")
        known = self.details.get("preprocessing")
        if preprocessing and not _complete(known):
            self.details = self.details | {"preprocessing": dict(preprocessing)}

    def _open_onnx(self, path: Path, threads: int) -> None:
        from utils.session import open_session, read_metadata

        session = open_session(path, threads)
        self.details, (entry, *others) = read_metadata(session), session.get_inputs()
        self.size = entry.shape[2:] if len(entry.shape) == 4 else []
        if others or entry.type != "tensor(float)" or len(entry.shape) != 4 or entry.shape[1] not in (3, "3"):
            raise InputError(
                f"{relative(path)} takes {entry.name!r} {entry.type} {entry.shape}: expected a single input, "
                "tensor(float) [batch, 3, height, width], normalized; export it in that form"
            )
        fixed = entry.shape[0] if isinstance(entry.shape[0], int) else None

        def run(images: np.ndarray) -> np.ndarray:
            if fixed is None:
                return session.run(None, {entry.name: images})[0]
            padded = np.resize(images, (-(-len(images) // fixed) * fixed, *images.shape[1:]))
            chunks = padded.reshape(-1, fixed, *images.shape[1:])
            return np.concatenate([session.run(None, {entry.name: chunk})[0] for chunk in chunks])[: len(images)]

        self.run = run

    def _open_checkpoint(self, path: Path, threads: int) -> None:
        import torch

        from utils.model import load_model

        torch.set_num_threads(threads)
        model, self.details = load_model(path)
        self.size = []

        def run(images: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return model(torch.from_numpy(images)).numpy()

        self.run = run

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.concatenate([self.run(images[start : start + BATCH]) for start in range(0, len(images), BATCH)])

    @property
    def preprocessing(self) -> dict:
        """How images are prepared; raises InputError when neither the file nor the caller says it, or both disagree."""
        known = self.details.get("preprocessing")
        if not _complete(known):
            raise InputError(
                f"{relative(self.path)} does not say how its images are prepared: set PREPROCESSING to a dictionary "
                "with image_size, interpolation, mean and std"
            )
        wanted = {side for side in self.size if isinstance(side, int)}
        if wanted - {known["image_size"]}:
            raise InputError(
                f"{relative(self.path)} takes {' × '.join(map(str, self.size))} pixels, but its preprocessing makes "
                f"{known['image_size']} × {known['image_size']}: correct image_size"
            )
        return {name: known[name] for name in sorted(PREPROCESSING)}

    def check_classes(self, classes: Sequence[str]) -> None:
        """Raise InputError when the file names other classes, or in another order."""
        known = self.details.get("classes")
        if isinstance(known, list) and known != list(classes):
            raise InputError(
                f"{relative(self.path)} answers with {listing(known)}, but the folder holds "
                f"{listing(classes)}: give the folder it was trained for, its classes in alphabetical order"
            )

    def check_width(self, logits: np.ndarray, classes: Sequence[str]) -> None:
        """Raise InputError when logits are not (N, C)."""
        if logits.ndim != 2 or logits.shape[1] != len(classes):
            raise InputError(
                f"{relative(self.path)} answers with shape {logits.shape}, but the folder holds {len(classes)} classes "
                f"({listing(classes)}): give a classifier of these, in alphabetical order"
            )


def check_alike(models: Sequence[Predictor]) -> None:
    """Raise InputError unless all files stem from one run: the same preprocessing and the same split."""
    for model in models[1:]:
        for name in ("preprocessing", "split_hash"):
            if model.details.get(name) != models[0].details.get(name):
                raise InputError(
                    f"{relative(model.path)} and {relative(models[0].path)} differ in {name}, so they are not of one "
                    "run: run train.ipynb and onnx_quant.ipynb again"
                )


def _complete(preprocessing: object) -> bool:
    return isinstance(preprocessing, dict) and set(preprocessing) >= PREPROCESSING


def file_bytes(path: Path) -> int:
    """Count a model's bytes on the disk, those outside the ``.onnx`` file included.

    Raises InputError naming the external file that is missing, as when only the ``.onnx`` has been moved.
    """
    if path.suffix != ".onnx" or not path.exists():
        return path.stat().st_size if path.exists() else 0
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, _get_all_tensors, uses_external_data

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # protobuf's own kind; opening the file says what is wrong with it
        return path.stat().st_size
    names = {ExternalDataInfo(each).location for each in _get_all_tensors(model) if uses_external_data(each)}
    missing = [name for name in sorted(names) if not (path.parent / name).is_file()]
    if missing:
        raise InputError(f"{relative(path)} needs {', '.join(missing)} beside it, which is not there: copy it too")
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in names)


def answer_all(
    models: dict[str, Predictor],
    classes: Sequence[str],
    image_set: Callable[..., ImageDataset],
    spoil: Callable | None = None,
) -> dict[str, np.ndarray]:
    """Let each model answer all images of `image_set(transform=...)`; → logits (N, C) each, in the order of `models`.

    Models with the same preprocessing share one pass over the images, of which a batch is in memory at a time. `spoil`
    changes each image (PIL) before it is prepared. Raises InputError when a model answers with other classes.
    """
    from torchvision.transforms import v2

    from utils.datasets import evaluation_transform, make_loader
    from utils.progress import progress

    alike: dict[str, list[str]] = {}
    for name, model in models.items():
        model.check_classes(classes)
        alike.setdefault(repr(model.preprocessing), []).append(name)
    batches: dict[str, list[np.ndarray]] = {name: [] for name in models}
    for names in alike.values():
        transform = evaluation_transform(models[names[0]].preprocessing)
        dataset = image_set(transform=v2.Compose([spoil, transform]) if spoil else transform)
        for images, _ in progress(make_loader(dataset, BATCH), "answers"):
            for name in names:
                batches[name].append(models[name](images.numpy()))
                models[name].check_width(batches[name][-1], classes)
    return {name: np.concatenate(each) for name, each in batches.items()}


def unsplit_index(folder: Path) -> pd.DataFrame:
    """List a folder's images, for models that this project did not make: columns path, class, group, split.

    All count as test images, as long as the models never saw them; each is a group of its own but for exact copies.
    """
    from utils.images import scan_folder

    good, _ = scan_folder(folder)
    return good.assign(group=good["pixels"], split="test")[["path", "class", "group", "split"]]
