"""What a browser needs to run the model: ONNX Runtime, the file, photos to click, and a test that all is in order."""

import base64
import gzip
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.config import InputError
from utils.images import read_image
from utils.page.photos import data_uri, photo_uri, pixels_sha256
from utils.page.runtime import read_runtime
from utils.predict import Classifier
from utils.session import open_session

SAMPLE, TEST = 320, 96  # pixels a side at most: of the photos to click, and of the one for the self-test


def make_tryout(classifier: Classifier, deployed: Path, photos: Sequence[tuple[str, Path]]) -> dict:
    """Collect what the page's script reads; `photos` to click, (class, file).

    Raises InputError when ONNX Runtime for browsers cannot be had, or the file takes photos of one size alone.
    """
    if any(isinstance(side, int) for side in classifier.size):
        raise InputError("its file takes photos of one size alone, and browsers do not resize as training did")
    code, binary = read_runtime()
    files = {"runtime-code": code, "runtime-binary": binary, "model": deployed.read_bytes()}
    data = {
        "classes": classifier.details["classes"],
        "abstain_below": classifier.details.get("abstain_below", 0),
        "novelty_above": classifier.details.get("novelty_above"),
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        "self_test": _self_test(deployed, [path for _, path in photos]),
    }
    packed = {name: base64.b64encode(gzip.compress(content, 6, mtime=0)).decode() for name, content in files.items()}
    samples = [{"name": name, "photo": photo_uri(path, SAMPLE)} for name, path in photos]
    return {"data": data, "files": packed, "samples": samples}


def _self_test(deployed: Path, photos: Sequence[Path]) -> dict:
    """Take the small photo whose answer is least sure, which shows faults best: its pixels, and what must come out.

    Sums of 8-bit products may overflow on this CPU, but never in WebAssembly: hence the precise answer.
    """
    session, images = open_session(deployed, precise=True), [read_image(photo) for photo in photos]
    for image in images:
        image.thumbnail((TEST, TEST))
    answers = [session.run(["probabilities"], {"image": np.asarray(image)[None]})[0][0] for image in images]
    place = int(np.argmin([probabilities.max() for probabilities in answers]))
    return {
        "photo": data_uri(images[place], "PNG"),
        "pixels": pixels_sha256(images[place]),
        "probabilities": answers[place].tolist(),
    }
