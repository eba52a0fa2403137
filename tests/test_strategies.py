"""Strategies against imbalance: what each trains on, which one ships, and whether variation has become a mark."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter
from torchvision.transforms import v2

from bench.notebooks import run_cells
from utils import config
from utils.datasets import Augmentation, ImageDataset, evaluation_transform
from utils.images import scan_folder
from utils.model import build_model
from utils.train.feature_table import FeatureTable
from utils.train.strategies import Strategy, choose, compare, compare_on, strategies

CLASSES = ["a", "b", "rare"]


def a_table(counts: tuple = (6, 6, 2), versions: int = 1) -> FeatureTable:
    """A table without features: images of three classes as they are, then versions of all of them."""
    labels = np.tile(np.repeat(range(3), counts), versions + 1)
    paths = np.tile(np.arange(sum(counts)), versions + 1)
    return FeatureTable(np.zeros((len(labels), 1)), paths, labels, paths)


# --- what is trained on


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("minority", [6, 6, 4]),
        ("none", [6, 6, 2]),
        ("all", [12, 12, 4]),
        ("class weights", [6, 6, 2]),
        ("oversampling", [6, 6, 6]),
    ],
)
def test_each_strategy_trains_on_what_it_says(name, counts):
    table, (strategy, _) = a_table(), choose(name, None, ["rare"], CLASSES)
    index = pd.DataFrame({"path": table.paths, "class": np.array(CLASSES)[table.labels]})[:14]
    train = index.iloc[strategy.repeat(index["class"])]
    assert np.bincount(table.of(train, strategy.augmented).labels).tolist() == counts
    assert (strategy.class_weight == "balanced") == (name == "class weights")
    in_an_epoch = [6, 6, 6 if name == "oversampling" else 2]
    assert train["class"].value_counts(sort=False).tolist() == in_an_epoch


def test_every_image_is_there_before_one_is_repeated():
    positions = Strategy("oversampling", oversample=True).repeat(a_table().labels[:14])
    assert set(positions) == set(range(14)) and (positions[:14] == np.arange(14)).all()


def test_the_setting_may_name_every_strategy_there_is():
    assert tuple(strategies([], 0)) == config.STRATEGIES


# --- which one ships


def compared(**rows: tuple[float, float, float]) -> pd.DataFrame:
    """Make the table of `compare` from difference, low and artefact rate of some strategies; others change nothing."""
    table = pd.DataFrame(0.0, list(strategies([2], 3)), ["difference", "low", "high", "artefact_rate"])
    table["low"], table["high"] = -0.01, 0.01
    table.loc["minority", ["low", "high"]] = 0.0
    for key, (difference, low, rate) in rows.items():
        table.loc[key.replace("_", " ")] = difference, low, 2 * difference - low, rate
    return table.assign(macro_f1=0.8 + table["difference"])


def ships(augment: str | None = None, **rows: tuple[float, float, float]) -> tuple[str, str]:
    """Name the strategy that ships, and why."""
    strategy, found = choose(augment, compared(**rows), ["rare"], CLASSES)
    assert strategy.name == found["name"]
    return found["name"], found["reason"]


def test_minority_only_ships_unless_there_is_a_reason():
    assert ships() == ("minority only", "no other strategy is better beyond doubt")
    assert ships(all=(0.05, -0.001, 0.0), minority=(0.0, 0.0, 0.10))[0] == "minority only"
    assert ships("all")[0] == "all classes" and ships("all")[1].startswith("given, by AUGMENT")
    strategy, found = choose(None, pd.DataFrame(), [], CLASSES)
    assert strategy.name == "none" and found["reason"].startswith("no class is short of images")


def test_a_strategy_that_is_better_beyond_doubt_ships_with_the_difference():
    name, reason = ships(none=(0.02, 0.01, 0.0), class_weights=(0.04, 0.015, 0.0), all=(0.09, -0.1, 0.0))
    assert name == "class weights"
    assert reason == "better than augmenting the minority only: macro-F1 +0.040 (+0.015 to +0.065)"


def test_variation_that_is_a_mark_stops_it():
    rows = {"minority": (0.0, 0.0, 0.4), "all": (0.03, -0.1, 0.2), "oversampling": (0.01, -0.1, 0.05)}
    name, reason = ships(**rows)
    assert name == "oversampling", "the best of those where it is no mark"
    assert "40% of the other classes' images are taken for a minority class" in reason and reason.endswith(
        "with oversampling, 5%"
    )


def clouds(per_class: int, seed: int, spread: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Draw Gaussian clouds of three classes."""
    labels = np.repeat(np.arange(3), per_class)
    centers = np.random.default_rng(99).normal(size=(3, 30))
    return centers[labels] + spread * np.random.default_rng(seed).normal(size=(len(labels), 30)), labels


def test_the_strategy_that_helps_is_seen():
    """Versions of all classes cover what the images differ in; those of the minority alone do so for one class."""
    keep = np.concatenate([np.arange(120), 120 + np.arange(20)])
    (rows, labels), (versions, _) = clouds(60, 0), clouds(60, 5)
    features = np.concatenate([rows[keep], versions[keep], versions[keep]]).astype(np.float32)
    paths = np.tile(np.arange(140), 3)
    table = compare(FeatureTable(features, paths, np.tile(labels[keep], 3), paths // 4), minority=[2])
    assert list(table.index) == ["minority", "none", "all", "class weights", "oversampling"]
    assert table.loc["minority", ["difference", "low", "high"]].abs().max() == 0
    assert (table["low"] <= table["difference"]).all() and (table["difference"] <= table["high"]).all()
    assert table["difference"]["all"] > 0
    assert table["artefact_rate"].between(0, 1).all()


def test_a_version_of_an_image_is_in_the_fold_of_the_image():
    """Labels that mean nothing, and versions equal to their images; if they were trained on, all would be known."""
    generator = np.random.default_rng(0)
    features, paths = generator.normal(size=(80, 30)).astype(np.float32), np.tile(np.arange(80), 2)
    table = FeatureTable(features, np.arange(80), np.arange(80) % 2, np.arange(80)).take(paths)
    assert compare(table, minority=[1])["macro_f1"].max() < 0.75


# --- on photos


@pytest.fixture(scope="module")
def dark_photos(tmp_path_factory) -> tuple[Path, pd.DataFrame]:
    """Grey blobs on black, of which the few darker ones are tomatoes; → the folder and its table."""
    folder, generator = tmp_path_factory.mktemp("dark") / "사진", np.random.default_rng(0)
    y, x = np.mgrid[:60, :60]
    for name, count, brightness in (("apple", 60, 120), ("tomato", 20, 90)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            center, radius = generator.uniform(24, 36, 2), generator.uniform(14, 24)
            inside = np.hypot(y - center[0], x - center[1]) < radius
            pixels = np.where(inside, generator.normal(brightness, 15), 10).clip(0, 255)
            blurred = Image.fromarray(pixels.astype(np.uint8)).filter(ImageFilter.GaussianBlur(2))
            blurred.convert("RGB").save(folder / name / f"{number:02d}.jpg", quality=92)
    index, _ = scan_folder(folder)
    return folder, index.assign(group=index["path"], split="train")


def transform_of_the_notebook() -> Callable:
    """Take the random transform from train.ipynb, for conv_net."""
    names = run_cells("train", ["imports", "parameters"], {})
    names["ARCH"] = "conv_net"
    return v2.Compose(run_cells("train", ["transforms"], names)["steps"])


@pytest.mark.parametrize("corners", ["white", "reflected"])
def test_white_corners_mark_the_minority_and_those_of_the_notebook_do_not(dark_photos, tmp_path, corners):
    folder, index = dark_photos
    network, preprocessing = build_model("conv_net")
    basic, vary = evaluation_transform(preprocessing), transform_of_the_notebook()
    if corners == "white":
        vary = v2.Compose([v2.RandomRotation(15, fill=255), basic])

    def image_set(part: pd.DataFrame, augmented: tuple = ()) -> ImageDataset:
        return ImageDataset(folder, part, ["apple", "tomato"], basic, Augmentation(vary, augmented))

    table = compare_on(network, image_set, index, ["tomato"], versions=2, run=tmp_path)
    rates, (_, found) = table["artefact_rate"], choose(None, table, ["tomato"], ["apple", "tomato"])
    if corners == "white":
        others = rates[["none", "all", "class weights", "oversampling"]]
        assert rates["minority"] > 0.4 > 0.2 > others.max(), "there, nothing could be learned from the corners"
        assert found["name"] != "minority only" and "are taken for a minority class" in found["reason"]
    else:
        assert rates["minority"] < 0.1
        assert found["name"] == "minority only"


def test_the_test_part_has_no_say(dark_photos, tmp_path):
    folder, index = dark_photos
    network, preprocessing = build_model("conv_net")
    seen = []

    def image_set(part: pd.DataFrame, augmented: tuple = ()) -> ImageDataset:
        seen.extend(part["path"])
        return ImageDataset(folder, part, ["apple", "tomato"], evaluation_transform(preprocessing))

    index = index.assign(split=np.where(np.arange(80) % 4, "train", "test"))
    compare_on(network, image_set, index, ["tomato"], versions=1, run=tmp_path)
    assert set(seen) == set(index.loc[index["split"] == "train", "path"])
