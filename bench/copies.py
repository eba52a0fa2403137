"""How many copies does EDA find, and at what price: python -m bench.copies [--data DIR --groups PATTERN].

Each photo gets three copies under random names, as annotation services make them: mirrored, cropped, turned,
brightened, compressed, three of these five. Printed for grouping by colors alone, by features alone, and by both, as in
EDA.ipynb: recall and precision of the pairs of images that are grouped, and the pairs on two sides of the split. Then
the same for the photos as they are. PATTERN says which photos show one object, as GROUPS does in EDA.ipynb ("class":
all of a class do); without it, each is taken for an object of its own, and photos that were copies of each other before
count as mistakes.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageEnhance, ImageOps
from sklearn.metrics.cluster import pair_confusion_matrix

from utils.config import project_path
from utils.eda.duplicates import describe_colors, describe_features, group_by_looks
from utils.images import read_image, read_pictures, scan_folder
from utils.layout import list_images
from utils.split import count_leaks, name_groups, split_index

COPIES = 3


def crop(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Keep 80 to 92 % of both sides."""
    share = generator.uniform(0.80, 0.92)
    width, height = share * image.width, share * image.height
    left, top = generator.uniform(0, image.width - width), generator.uniform(0, image.height - height)
    return image.crop((round(left), round(top), round(left + width), round(top + height)))


def alter(image: Image.Image, way: str, generator: np.random.Generator) -> Image.Image:
    """Alter an image in one way; what is compressed is altered when it is saved."""
    if way == "mirrored":
        return ImageOps.mirror(image)
    if way == "cropped":
        return crop(image, generator)
    if way == "turned":
        return image.rotate(generator.uniform(5, 20) * generator.choice([-1, 1]), Image.Resampling.BICUBIC)
    if way == "brightened":
        return ImageEnhance.Brightness(image).enhance(generator.uniform(1.2, 1.5))
    return image


def make_copies(source: Path, target: Path) -> pd.Series:
    """Write each photo and its copies under random names; → the photo that each file shows, by the file's path."""
    generator, shown = np.random.default_rng(0), {}
    for photo, name, *_ in list_images(source):
        (target / name).mkdir(exist_ok=True)
        image = read_image(photo)
        for way in ["", *generator.permutation(["mirrored", "cropped", "turned", "brightened", "compressed"])[:COPIES]]:
            path = target / name / f"{generator.integers(2**48):012x}{'.jpg' if way else photo.suffix}"
            if way:
                alter(image, way, generator).save(path, quality=25 if way == "compressed" else 85)
            else:
                shutil.copy(photo, path)
            shown[path.relative_to(target).as_posix()] = photo.relative_to(source).as_posix()
    return pd.Series(shown)


def objects(index: pd.DataFrame, pattern: str) -> pd.Series:
    """Say which object each photo shows."""
    return index["class"] if pattern == "class" else name_groups(index, pattern)


def pair_scores(groups: pd.Series, truth: pd.Series) -> tuple[float, float]:
    """Precision and recall of the pairs of images that `groups` puts together, against the groups in `truth`."""
    pairs = pair_confusion_matrix(truth, groups)
    right, found, real = pairs[1, 1], pairs[:, 1].sum(), pairs[1].sum()
    return float(right / found) if found else 1.0, float(right / real) if real else 1.0


def print_rows(title: str, folder: Path, index: pd.DataFrame, truth: pd.Series) -> None:
    """Group the images in three ways and print a row for each."""
    with tempfile.TemporaryDirectory() as cache:
        started = time.perf_counter()
        colors = describe_colors(read_pictures(folder, index), index["class"].to_numpy())
        features = describe_features(folder, index, Path(cache))
        seconds = time.perf_counter() - started
    print(f"{title}: {len(index)} images of {truth.nunique()} objects, described in {seconds:.1f} s")
    for name, measures in {"colors": [colors], "features": [features], "both": [colors, features]}.items():
        groups = group_by_looks(index, measures)
        precision, recall = pair_scores(groups, truth)
        leaks = count_leaks(truth, split_index(index.assign(group=groups)))
        print(f"{name:12}{groups.nunique():8}{recall:10.3f}{precision:11.3f}{leaks:20}", flush=True)


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data/train")
    parser.add_argument("--groups", default="")
    given = parser.parse_args()
    source = project_path(given.data)
    print(f"{'':12}{'groups':>8}{'recall':>10}{'precision':>11}{'pairs on two sides':>20}")
    with tempfile.TemporaryDirectory() as target:
        shown = make_copies(source, Path(target))
        index, _ = scan_folder(Path(target))
        photos = index.assign(path=index["path"].map(shown))
        print_rows("with three copies of each", Path(target), index, objects(photos, given.groups))
    index, _ = scan_folder(source)
    print_rows("as they are", source, index, objects(index, given.groups))


if __name__ == "__main__":
    main()
