"""One interface for every model file."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from utils.config import BATCH, InputError, listing, relative, require

PREPROCESSING = {"image_size", "interpolation", "mean", "std"}


class Predictor:
    """A model file (``.pth`` or ``.onnx``) as a function: images float32 (N, 3, H, W) → logits (N, C), on the CPU.

    `details` holds what the file says of itself, such as classes and preprocessing; `preprocessing` is for a file that
    says nothing of it. ONNX files of any origin have one float32 input, its batch free or fixed; of several outputs the
    first one counts. `run` takes all images in one call. torch and ONNX Runtime are imported only for files that need
    them: a process that is timed has to stay small.
    """

    def __init__(self, path: Path, threads: int = 1, preprocessing: dict | None = None):
        self.path, self.size = path, []
        openers = {".onnx": self._open_onnx, ".pth": self._open_checkpoint}
        require(path.suffix in openers, f"{relative(path)}: a model file ends in .pth or .onnx")
        self.run = openers[path.suffix](threads)
        if preprocessing and not _complete(self.details.get("preprocessing")):
            self.details["preprocessing"] = dict(preprocessing)

    def _open_onnx(self, threads: int) -> Callable:
        from utils.session import open_to_predict, read_metadata

        session = open_to_predict(self.path, threads)
        self.details = read_metadata(session)
        entry, *others = session.get_inputs()
        if others or entry.type != "tensor(float)" or len(entry.shape) != 4 or entry.shape[1] not in (3, "3"):
            raise InputError(
                f"{relative(self.path)} takes {entry.name!r} {entry.type} {entry.shape}: expected a single input, "
                "tensor(float) [batch, 3, height, width], normalized; export it in that form"
            )
        batch, _, *self.size = entry.shape

        def run(images: np.ndarray) -> np.ndarray:
            if not isinstance(batch, int):
                return session.run(None, {entry.name: images})[0]
            calls = math.ceil(len(images) / batch)
            padded = np.resize(images, (calls * batch, *images.shape[1:]))  # the last call is filled up with the first
            parts = [session.run(None, {entry.name: part})[0] for part in np.split(padded, calls)]
            return np.concatenate(parts)[: len(images)]

        return run

    def _open_checkpoint(self, threads: int) -> Callable:
        import torch

        from utils.model import load_model

        torch.set_num_threads(threads)
        model, self.details = load_model(self.path)

        def run(images: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return model(torch.from_numpy(images)).numpy()

        return run

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.concatenate([self.run(images[start : start + BATCH]) for start in range(0, len(images), BATCH)])

    @property
    def preprocessing(self) -> dict:
        """How images are prepared; raises InputError when neither the file nor the caller says it, or both disagree."""
        stored = self.details.get("preprocessing")
        require(
            _complete(stored),
            f"{relative(self.path)} does not say how its images are prepared: set PREPROCESSING to a dictionary with "
            "image_size, interpolation, mean and std",
        )
        made = stored["image_size"]
        require(
            all(side == made for side in self.size if isinstance(side, int)),
            f"{relative(self.path)} takes {' × '.join(map(str, self.size))} pixels, but its preprocessing makes "
            f"{made} × {made}: correct image_size",
        )
        return {name: stored[name] for name in sorted(PREPROCESSING)}

    def check_classes(self, classes: Sequence[str], logits: np.ndarray) -> None:
        """Raise InputError when the file names other classes, or in another order, or its logits are not (N, C)."""
        stored, given = self.details.get("classes"), f"the folder holds {listing(classes)}"
        if isinstance(stored, list) and stored != list(classes):
            raise InputError(
                f"{relative(self.path)} predicts {listing(stored)}, but {given}: give the folder it was trained for, "
                "its classes in alphabetical order"
            )
        if logits.ndim != 2 or logits.shape[1] != len(classes):
            raise InputError(
                f"{relative(self.path)} returns shape {logits.shape}, but {given}: give a classifier of these, in "
                "alphabetical order"
            )


def _complete(preprocessing: object) -> bool:
    return isinstance(preprocessing, dict) and set(preprocessing) >= PREPROCESSING
