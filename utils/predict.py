"""Classify photos with a deployed model: ``python -m utils.predict model_int8_deploy.onnx photo.jpg ...``.

Needs nothing but onnxruntime, numpy and Pillow.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from utils.config import InputError, relative
from utils.images import read_image
from utils.session import open_session, read_metadata

USAGE = "usage: python -m utils.predict MODEL_int8_deploy.onnx PHOTO ..."


class Classifier:
    """A deployed model: photo file → probability of each class."""

    def __init__(self, path: Path):
        self.session = open_session(path)
        self.details = read_metadata(self.session)
        expected = self.session.get_inputs()[0]
        if expected.type != "tensor(uint8)" or "classes" not in self.details:
            raise InputError(
                f"{relative(path)} takes {expected.name!r} {expected.type} {expected.shape}, not photos: "
                "give the file that ends in _deploy.onnx, which onnx_quant.ipynb writes beside it"
            )
        self.size = expected.shape[2], expected.shape[1]  # names where any size will do

    def probabilities(self, photo: Path) -> np.ndarray:
        """Give a photo's probability of each class (C,); raises InputError when it cannot be read."""
        image = read_image(photo)
        if all(isinstance(side, int) for side in self.size):
            method = Image.Resampling[self.details["preprocessing"]["interpolation"].upper()]
            image = image.resize(self.size, method)
        return self.session.run(None, {"image": np.asarray(image)[None]})[0][0]


def main(arguments: list[str]) -> int:
    """Print the most probable class of each photo, its probability, and whether that is less than it takes to be sure.

    Returns 1 if any file could not be read.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a console that lacks a letter is no reason to stop
    if len(arguments) < 2:
        print(USAGE, file=sys.stderr)
        return 2
    failed = False
    try:
        classifier = Classifier(Path(arguments[0]))
        for name in arguments[1:]:
            try:
                probabilities = classifier.probabilities(Path(name))
                best = classifier.details["classes"][probabilities.argmax()]
                unsure = "\tunsure" if probabilities.max() < classifier.details.get("abstain_below", 0) else ""
                print(f"{name}\t{best}\t{probabilities.max():.1%}{unsure}", flush=True)
            except InputError as error:
                print(error, file=sys.stderr)
                failed = True
    except InputError as error:
        print(error, file=sys.stderr)
        failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
