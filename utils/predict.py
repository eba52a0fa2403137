"""Classify photos with a deployed model: ``python -m utils.predict model_int8_deploy.onnx photo.jpg ...``.

Needs nothing but onnxruntime, numpy and Pillow.
"""

import sys
from pathlib import Path

import numpy as np

from utils.config import THREADS, InputError, relative
from utils.images import read_image, resize
from utils.session import open_session, outdated, read_metadata

USAGE = "usage: python -m utils.predict MODEL_int8_deploy.onnx PHOTO ..."


class Classifier:
    """A deployed model: photo file → probability of each class, and how far it is from all of them."""

    def __init__(self, path: Path, threads: int = THREADS):
        self.session = open_session(path, threads)
        self.details = read_metadata(self.session)
        expected = self.session.get_inputs()[0]
        if expected.type != "tensor(uint8)" or "classes" not in self.details:
            raise InputError(
                f"{relative(path)} takes {expected.name!r} {expected.type} {expected.shape}, not photos: "
                "give the file that ends in _deploy.onnx, which onnx_quant.ipynb writes beside it"
            )
        self.size = expected.shape[2], expected.shape[1]  # names where any size will do

    def outputs(self, photo: Path) -> dict[str, np.ndarray]:
        """Run the model on a photo; → `probabilities` (C,), and `novelty` () where the file has it.

        Raises InputError when the photo cannot be read.
        """
        image = read_image(photo)
        if all(isinstance(side, int) for side in self.size):
            image = resize(image, self.size, self.details["preprocessing"]["interpolation"])
        values = self.session.run(None, {"image": np.asarray(image)[None]})
        return {output.name: value[0] for output, value in zip(self.session.get_outputs(), values, strict=True)}

    def probabilities(self, photo: Path) -> np.ndarray:
        """Return a photo's probability of each class (C,)."""
        return self.outputs(photo)["probabilities"]

    def doubt(self, outputs: dict[str, np.ndarray]) -> str:
        """Say "unknown" of a photo that resembles no class, "unsure" of one that may be several, else nothing."""
        if outputs.get("novelty", 0) > self.details.get("novelty_above", np.inf):
            return "unknown"
        return "unsure" if outputs["probabilities"].max() < self.details.get("abstain_below", 0) else ""


def main(arguments: list[str]) -> int:
    """Print of each photo the most probable class, its probability, and what there is to doubt, separated by tabs.

    Returns 1 if any file could not be read.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a console that lacks a letter is no reason to stop
    if len(arguments) < 2:
        print(USAGE, file=sys.stderr)
        return 2
    if warning := outdated():
        print(warning, file=sys.stderr)
    failed = False
    try:
        classifier = Classifier(Path(arguments[0]))
        for name in arguments[1:]:
            try:
                outputs = classifier.outputs(Path(name))
                best = classifier.details["classes"][outputs["probabilities"].argmax()]
                columns = [name, best, f"{outputs['probabilities'].max():.1%}", classifier.doubt(outputs)]
                print("\t".join(filter(None, columns)), flush=True)
            except InputError as error:
                print(error, file=sys.stderr)
                failed = True
    except InputError as error:
        print(error, file=sys.stderr)
        failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
