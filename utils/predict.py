"""Classify photos with a deployed model: ``python -m utils.predict model_int8_deploy.onnx photo.jpg folder ...``.

Needs nothing but onnxruntime, numpy and Pillow; where tqdm is installed, a bar shows how far it is.
"""

import argparse
import csv
import filecmp
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.config import CHECKPOINTS, THREADS, InputError, listing, relative, require
from utils.files import WRITING, as_cell, remove_leftovers, whole_file
from utils.images import read_image, resize
from utils.layout import find_images
from utils.parallel import progress
from utils.report import read_report
from utils.session import check_itself, open_to_predict, outdated, read_metadata

DEPLOYED = {"int8": "_int8_deploy.onnx", "onnx": "_deploy.onnx", "pytorch": "_deploy.onnx"}  # by what the verdict ships
RESERVED = re.compile(r'[<>:"/\\|?*\x00-\x1f]')  # what no name of a folder may hold, on one system or another


class Classifier:
    """A deployed model: photo file → probability of each class, and how far it is from all of them.

    With `shrink`, Pillow resizes a photo, as in training, even where the file would do so itself: in less time and
    memory.
    """

    def __init__(self, path: Path, threads: int = THREADS, shrink: bool = False):
        self.session = open_to_predict(path, threads)
        self.details = read_metadata(self.session)
        expected = self.session.get_inputs()[0]
        if expected.type != "tensor(uint8)":
            raise InputError(
                f"{relative(path)} takes {expected.name!r} {expected.type} {expected.shape}, not photos: "
                "give the file that ends in _deploy.onnx, which onnx_quant.ipynb writes beside it"
            )
        require(
            "classes" in self.details,
            f"{relative(path)} has lost its metadata, the classes among them, as files do in onnx-graphsurgeon and "
            "onnx.utils.extract_model: use it as onnx_quant.ipynb wrote it",
        )
        check_itself(path, self.session, self.details.get("self_check"))
        classes = self.details["classes"]  # which may be called unknown themselves
        self.doubts = {word: f"doubt: {word}" if word in classes else word for word in ("unsure", "unknown")}
        self.size = expected.shape[2], expected.shape[1]  # names where any size will do
        if shrink:
            self.size = (self.details["preprocessing"]["image_size"],) * 2

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
            return self.doubts["unknown"]
        return self.doubts["unsure"] if outputs["probabilities"].max() < self.details.get("abstain_below", 0) else ""


class Prediction(NamedTuple):
    """What a model says of a photo: the most probable class, what there is to doubt, and all probabilities (C,)."""

    photo: str
    best: str
    doubt: str
    probabilities: np.ndarray


def shipped_file(run: str | Path = "") -> Path:
    """Find the file that takes photos of the model that a run's verdict ships, by the run's name or folder.

    Raises InputError when there is no such run, or no verdict yet.
    """
    folder = CHECKPOINTS / run
    report = read_report(folder)
    verdict = report.get("comparison", {}).get("verdict")
    if not verdict:
        runs = sorted(path.parent.name for path in CHECKPOINTS.glob("*/report.json"))
        raise InputError(
            f"{relative(folder)} holds no verdict: let run.py run the four notebooks first. Named runs at hand: "
            f"{listing(runs) or 'none'}"
        )
    ship = verdict["ship"]
    sentence = f"the verdict of {relative(folder)} is for {ship}, of which there is no file that takes photos"
    require(ship in DEPLOYED, sentence)
    return folder / f"{report['train']['arch']}{DEPLOYED[ship]}"


def find_photos(names: Iterable[str]) -> tuple[list[str], Counter, list[str]]:
    """List photos as they are named, and those in folders, searched as EDA does.

    Returns the photos, what else lies in the folders, counted by extension, and what is wrong with a folder.
    """
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


def predict_photos(classifier: Classifier, photos: Sequence[str]) -> Iterator[Prediction | InputError]:
    """Classify photos side by side, each in a thread of its own; → in their order, the error where one is not read."""

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
        yield from pool.map(predict, photos)
    finally:
        pool.shutdown(cancel_futures=True)


def write_table(path: Path, predictions: Sequence[Prediction], classes: Sequence[str]) -> None:
    """Write a CSV file of path, class, probability, doubt, and the probability of each class.

    Texts are written by `as_cell`.
    """
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8-sig", errors="replace", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "class", "probability", "doubt", *map(as_cell, classes)])
        for photo, best, doubt, probabilities in predictions:
            numbers = [f"{value:.6f}" for value in probabilities]
            writer.writerow([as_cell(photo), as_cell(best), f"{probabilities.max():.6f}", doubt, *numbers])


def sorting_places(target: Path, classes: Sequence[str], folders: Sequence[Path]) -> dict[str, Path]:
    """Name a folder below `target` for each class, and, under "", one for photos that there is a doubt about.

    Raises InputError where one would lie in one of the `folders` that the photos come from: they would be found twice.
    """
    places = {name: target / (RESERVED.sub("_", name).rstrip(". ") or "_") for name in classes}
    taken = {place.name.casefold() for place in places.values()}
    places[""] = next(path for path in _variants(target / "doubtful") if path.name not in taken)
    for place in (target, *places.values()):
        for folder in folders:
            outside = not place.resolve().is_relative_to(folder.resolve())
            require(outside, f"--sort {target}: {place} lies in {folder}, with the photos: name another folder")
    return places


def sort_photos(predictions: Iterable[Prediction], target: Path, places: dict[str, Path]) -> int:
    """Copy each photo to its place below `target`, unless the very same is there already; → how many were copied.

    Nothing is overwritten: where another photo has its name, it gets a number. Raises InputError where one cannot be
    copied.
    """
    copied = 0
    try:
        target.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        with tempfile.TemporaryDirectory(dir=target, prefix=WRITING) as temporary:
            for found in predictions:
                copied += _copy(Path(found.photo), places["" if found.doubt else found.best], temporary)
    except OSError as error:
        raise InputError(f"--sort {target}: {error.filename or 'a photo'}: {error.strerror}") from error
    return copied


def _copy(photo: Path, place: Path, temporary: str) -> bool:
    place.mkdir(exist_ok=True)
    for target in _variants(place / photo.name):
        if not os.path.lexists(target):
            break
        if filecmp.cmp(photo, target, shallow=False):
            return False
    whole = shutil.copy2(photo, temporary)  # first, so that what lies in its place is never half a photo
    os.replace(whole, target)
    return True


def _variants(path: Path) -> Iterator[Path]:
    """Vary a name: a.jpg, a (2).jpg, a (3).jpg and so on."""
    yield path
    for number in count(2):
        yield path.with_name(f"{path.stem} ({number}){path.suffix}")


def summarize(predictions: Sequence[Prediction]) -> str:
    """Count the photos of each class, and the doubtful ones apart, with the classes that they are nearest to."""
    counts = []
    for doubt in ["", *sorted({found.doubt for found in predictions} - {""}, reverse=True)]:
        nearest = Counter(found.best for found in predictions if found.doubt == doubt)
        classes = ", ".join(f"{name} {number}" for name, number in nearest.most_common())
        if nearest:
            counts.append(f"{doubt} {nearest.total()} (nearest: {classes})" if doubt else classes)
    doubtful = sum(found.doubt != "" for found in predictions)
    return f"{len(predictions)} photos, {doubtful} of them doubtful: {', '.join(counts)}"


def classify(model: Path, names: Sequence[str], table: Path | None = None, target: Path | None = None) -> int:
    """Print of each photo the most probable class, its probability, and what there is to doubt, separated by tabs.

    Photos are named one by one or by their folders. Writes them into a CSV file `table`, and copies them into a folder
    per class below `target`; what there is to say besides goes to stderr. Returns 1 if anything could not be read.
    """
    try:
        return int(_classify(model, names, table, target))
    except InputError as error:
        _say(error)
        return 1


def _classify(model: Path, names: Sequence[str], table: Path | None, target: Path | None) -> bool:
    """Do so; → whether anything could not be read. What cannot be written stops it before the work, not after it."""
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
    predictions = _print_predictions(predict_photos(classifier, photos), len(photos))
    unread = len(photos) - len(predictions)
    for fault in faults:
        _say(fault)
    if len(predictions) > 1:
        _say(summarize(predictions))
    if unread:
        _say(f"Not readable: {unread}")
    if others:
        _say(f"Skipped, as no images: {', '.join(f'{suffix} {number}' for suffix, number in others.most_common())}")
    if table:
        write_table(table, predictions, classes)
        _say(f"Written: {table}")
    if target:
        copied = sort_photos(_bar(predictions, "copy", len(predictions)), target, places)
        _say(f"Copied to {target}: {copied}, there already: {len(predictions) - copied}")
    return bool(unread or faults)


def _say(text: object) -> None:
    print(text, file=sys.stderr)


def _print_predictions(results: Iterable, total: int) -> list[Prediction]:
    """Print each prediction on stdout and each error on stderr; → the predictions."""
    predictions = []
    results = _bar(results, "predict", total)
    write = getattr(results, "write", print)  # the bar's own makes room for a line
    for found in results:
        if isinstance(found, InputError):
            write(str(found), file=sys.stderr)
            continue
        predictions.append(found)
        columns = [found.photo, found.best, f"{found.probabilities.max():.1%}", found.doubt]
        write("\t".join(filter(None, columns)), file=sys.stdout)
        sys.stdout.flush()
    return predictions


def _bar(items: Iterable, name: str, total: int) -> Iterable:
    """Show on a terminal how far it is, where tqdm is installed: whoever has the file alone need not have it."""
    if total < 2 or not sys.stderr.isatty():
        return items
    try:
        return progress(items, name, total)
    except ImportError:
        return items


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
    return classify(options.model, options.photos, options.csv, options.sort)


if __name__ == "__main__":
    sys.exit(main())
