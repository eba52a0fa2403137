"""Classify photos with a deployed model: ``python -m utils.predict model_int8_deploy.onnx photo.jpg folder ...``.

Needs nothing but onnxruntime, numpy and Pillow.
"""

import argparse
import csv
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.config import THREADS, InputError, relative, require
from utils.files import WRITING, as_cell, copy_numbered, remove_leftovers, whole_file
from utils.images import read_image, resize
from utils.layout import find_images
from utils.session import check_itself, open_to_predict, outdated, read_metadata

RESERVED = re.compile(r'[<>:"/\\|?*\x00-\x1f]')  # what no name of a folder may hold, on one system or another


class Classifier:
    """A deployed model, photo → probabilities; with `shrink`, Pillow resizes, which takes less time than the file."""

    def __init__(self, path: Path, threads: int = THREADS, shrink: bool = False):
        self.session = open_to_predict(path, threads)
        self.details = read_metadata(self.session)
        expected = self.session.get_inputs()[0]
        takes = f"{relative(path)} takes {expected.name!r} {expected.type} {expected.shape}, not photos"
        require(expected.type == "tensor(uint8)", f"{takes}: give the file beside it that ends in _deploy.onnx")
        lost = f"{relative(path)} has lost its metadata, as files do in onnx-graphsurgeon and onnx.utils.extract_model"
        require("classes" in self.details, f"{lost}: use it as onnx_quant.ipynb wrote it")
        check_itself(path, self.session, self.details.get("self_check"))
        classes = self.details["classes"]  # which may be called unknown themselves
        self.doubts = {word: f"doubt: {word}" if word in classes else word for word in ("unsure", "unknown")}
        self.size = expected.shape[2], expected.shape[1]  # names where any size will do
        if shrink:
            self.size = (self.details["preprocessing"]["image_size"],) * 2

    def outputs(self, photo: Path) -> dict[str, np.ndarray]:
        """Run the model on a photo file; → `probabilities` (C,), and `novelty` () where the model has it."""
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
            return self.doubts["unknown"]
        return self.doubts["unsure"] if outputs["probabilities"].max() < self.details.get("abstain_below", 0) else ""


class Prediction(NamedTuple):
    """What a model says of a photo: the most probable class, what there is to doubt, and all probabilities (C,)."""

    photo: str
    best: str
    doubt: str
    probabilities: np.ndarray


def find_photos(names: Iterable[str]) -> tuple[list[str], Counter, list[str]]:
    """List photos and those in folders; → them, other files counted by extension, and what is wrong with a folder."""
    photos, others, faults = [], Counter(), []
    for name in names:
        try:
            found, skipped = find_images(Path(name)) if Path(name).is_dir() else ([name], {})
        except OSError as error:
            faults.append(f"{name} cannot be searched: {error.strerror}")
            continue
        if not found:
            faults.append(f"{name} holds no image")
        photos += map(str, found)
        others.update(skipped)
    return photos, others, faults


def predict_photos(classifier: Classifier, photos: Sequence[str]) -> Iterator[Prediction]:
    """Classify photos side by side and print what is found, or, on stderr, why one cannot be read; → the predictions.

    A line has photo, class, probability and what there is to doubt, separated by tabs.
    """

    def predict(photo: str) -> Prediction | InputError:
        try:
            outputs = classifier.outputs(Path(photo))
        except InputError as error:
            return error
        probabilities = outputs["probabilities"]
        best = classifier.details["classes"][probabilities.argmax()]
        return Prediction(photo, best, classifier.doubt(outputs), probabilities)

    pool = ThreadPoolExecutor(THREADS)
    try:
        for found in pool.map(predict, photos):
            if isinstance(found, InputError):
                _say(found)
                continue
            columns = [found.photo, found.best, f"{found.probabilities.max():.1%}", found.doubt]
            print("\t".join(filter(None, columns)), flush=True)
            yield found
    finally:
        pool.shutdown(cancel_futures=True)  # when interrupted, finish what has begun


def write_table(path: Path, predictions: Sequence[Prediction], classes: Sequence[str]) -> None:
    """Write a CSV file of path, class, probability, doubt, and the probability of each class."""
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8-sig", errors="replace", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "class", "probability", "doubt", *map(as_cell, classes)])
        for photo, best, doubt, probabilities in predictions:
            numbers = [f"{value:.6f}" for value in probabilities]
            writer.writerow([as_cell(photo), as_cell(best), f"{probabilities.max():.6f}", doubt, *numbers])


def sorting_places(target: Path, classes: Sequence[str], folders: Sequence[Path]) -> dict[str, Path]:
    """Name a folder below `target` for each class and, under "", for doubtful photos; none in the photos' `folders`."""
    places = {name: target / (RESERVED.sub("_", name).rstrip(". ") or "_") for name in classes}
    taken = {place.name.casefold() for place in places.values()}
    places[""] = target / ("doubtful (2)" if "doubtful" in taken else "doubtful")
    for place in (target, *places.values()):
        for folder in folders:
            outside = not place.resolve().is_relative_to(folder.resolve())
            require(outside, f"--sort {target}: {place} lies in {folder}, with the photos: name another folder")
    return places


def sort_photos(predictions: Iterable[Prediction], target: Path, places: dict[str, Path]) -> int:
    """Copy each photo to its place, unless it is there already, with a number if need be; → how many were copied."""
    copied = 0
    try:
        target.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        with tempfile.TemporaryDirectory(dir=target, prefix=WRITING) as temporary:
            for found in predictions:
                copied += copy_numbered(Path(found.photo), places["" if found.doubt else found.best], Path(temporary))
    except OSError as error:
        raise InputError(f"--sort {target}: {error.filename or 'a photo'}: {error.strerror}") from error
    return copied


def summarize(predictions: Sequence[Prediction]) -> str:
    """Count the photos of each class, and the doubtful ones apart, with the classes that they are nearest to."""
    parts = []
    for doubt in sorted({found.doubt for found in predictions}):  # none of them first
        nearest = Counter(found.best for found in predictions if found.doubt == doubt)
        parts.append(f"{doubt} {nearest.total()} (nearest: {_counts(nearest)})" if doubt else _counts(nearest))
    doubtful = sum(found.doubt != "" for found in predictions)
    return f"{len(predictions)} photos, {doubtful} of them doubtful: {', '.join(parts)}"


def _counts(counts: Counter) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.most_common())


def classify(model: Path, names: Sequence[str], table: Path | None = None, target: Path | None = None) -> int:
    """Classify photos and folders of photos; write a CSV file `table`, and copy them into folders below `target`.

    Returns 1 if a photo or folder could not be read. Raises InputError, before the work, where there is no such model
    or nothing can be written.
    """
    if warning := outdated():
        _say(warning)
    classifier = Classifier(model, threads=1, shrink=True)
    classes = classifier.details["classes"]
    folders = [Path(name) for name in names if Path(name).is_dir()]
    places = sorting_places(target, classes, folders) if target else {}
    if table:
        is_table = table.suffix.lower() == ".csv" and not table.is_dir()  # and no photo that is named by mistake
        require(is_table, f"--csv {table}: give a file's name that ends in .csv")
        require(table.parent.is_dir(), f"--csv {table}: there is no folder {table.parent}")
    photos, others, faults = find_photos(names)
    predictions = list(predict_photos(classifier, photos))
    unread = len(photos) - len(predictions)
    for fault in faults:
        _say(fault)
    if len(predictions) > 1:
        _say(summarize(predictions))
    if unread:
        _say(f"Not readable: {unread}")
    if others:
        _say(f"Skipped, as no images: {_counts(others)}")
    if table:
        write_table(table, predictions, classes)
        _say(f"Written: {table}")
    if target:
        copied = sort_photos(predictions, target, places)
        _say(f"Copied to {target}: {copied}, there already: {len(predictions) - copied}")
    return int(bool(unread or faults))


def _say(text: object) -> None:
    print(text, file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and classify; → exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a console that lacks a letter is no reason to stop
    parser = argparse.ArgumentParser("python -m utils.predict", description=__doc__)
    parser.add_argument("model", type=Path, help="a file that ends in _deploy.onnx")
    parser.add_argument("photos", nargs="+", metavar="photo", help="a photo, or a folder of photos")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the predictions into this table, too")
    parser.add_argument("--sort", type=Path, metavar="DIR", help="copy the photos into a folder per class in this one")
    options = parser.parse_args(arguments)
    try:
        return classify(options.model, options.photos, options.csv, options.sort)
    except InputError as error:
        _say(error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
