"""Out-of-distribution images lie farther than known ones, and the deployed file says so as training measured it."""

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from nets import CLASSES, PREPROCESSING, to_int8
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from utils.cross_validation import fold_numbers
from utils.datasets import evaluation_transform
from utils.features import extract_features, fingerprint, last_block
from utils.images import read_image
from utils.onnx_quant.deploy import write_checked
from utils.predict import Classifier
from utils.report import render
from utils.train import novelty
from utils.train.feature_table import FeatureTable
from utils.train.head import Head, attach


def clouds(classes: int, per_class: int, seed: int = 0, size: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Features like a network's: positive, some directions livelier than others, a center per class."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    centers = 3 + np.random.default_rng(99).normal(size=(classes, size))
    noise = generator.normal(size=(len(labels), size)) * np.geomspace(0.2, 1.5, size)
    return np.abs(centers[labels] + noise).astype(np.float32), labels


def describe(found: dict) -> str:
    section = {"threshold": 1.0, **found}
    return render("sure.md", novelty=section, temperature=1.0, threshold=0.5)


def test_an_unknown_class_is_far_and_new_images_of_known_ones_are_not():
    features, labels = clouds(5, 40)
    detector = novelty.fit_detector(features[labels < 4], labels[labels < 4])
    new, truth = clouds(5, 200, seed=1)
    distances = detector.distances(new)
    assert np.median(distances[truth == 4]) > np.quantile(distances[truth < 4], 0.95)
    brighter = detector.distances(3 * new)  # only the direction of features counts
    np.testing.assert_allclose(brighter, distances, rtol=1e-4)


def test_is_mahalanobis_where_the_axes_hold_all_directions():
    features, labels = clouds(3, 60, size=12)
    detector = novelty.fit_detector(features, labels)
    directions = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(float)
    means = np.stack([directions[labels == label].mean(axis=0) for label in range(3)])
    within = np.cov((directions - means[labels]).T, bias=True) * len(labels) / (len(labels) - 3)
    shrunk = 0.8 * within + 0.2 * np.trace(within) / 12 * np.eye(12)
    steps = directions[:, None] - means
    squares = np.einsum("ncd,de,nce->nc", steps, np.linalg.inv(shrunk), steps)
    np.testing.assert_allclose(detector.distances(features), np.sqrt(squares.min(axis=1)), rtol=0.02)


class Body(nn.Module):
    """A network whose features are its input."""

    def __init__(self, size: int, classes: int):
        super().__init__()
        self.last = nn.Linear(size, classes)

    def get_classifier(self) -> nn.Linear:
        return self.last


@pytest.fixture(scope="module")
def known() -> tuple[FeatureTable, pd.DataFrame, np.ndarray]:
    """Four clouds as the features of images, four to a group, and their folds."""
    features, labels = clouds(4, 40)
    index = pd.DataFrame({"path": [f"{row}.jpg" for row in range(160)], "class": [f"class {each}" for each in labels]})
    index["group"] = np.arange(160) // 4
    table = FeatureTable(features, index["path"].to_numpy(), labels, index["group"].to_numpy())
    body = fingerprint(Body(features.shape[1], 4))
    return table._replace(body=body), index, fold_numbers(labels, index["group"].to_numpy(), 7, 0)


def test_each_class_is_left_out_once_and_training_never_sees_it(known):
    table, index, fold_of = known
    trained_on = []

    def fit(train, valid):
        trained_on.append(set(train["class"]) | set(valid["class"]))
        rows = table.of(train)
        return attach(Body(60, 4), Head(num_classes=4).fit(rows.features, rows.labels, rows.groups))

    shown = novelty.leave_classes_out(fit, table, index, fold_of, Body(60, 4))
    assert all(len(set(index["class"]) - known) == 1 for known in trained_on)
    assert set.intersection(*trained_on) == set()
    assert set(shown["left_out"]) == set(index["class"])
    assert (shown.groupby("left_out")["outside"].sum() == 40).all()
    score = novelty.score(shown)
    low, high = score["auroc_ci95"]
    assert 0.9 < low <= score["auroc"] <= high <= 1
    assert score["works"] and score["caught"] > 0.5


def test_only_the_features_of_the_last_block_are_looked_at(known):
    """Inner blocks that vary at random would hide what is out of distribution."""
    table, index, fold_of = known
    noise = 100 * np.random.default_rng(0).normal(size=(160, 50)).astype(np.float32)
    joined = table._replace(features=np.hstack([noise, table.features]), sizes=[50, 60])
    alone, both = (
        novelty.fit(Body(60, 4), part, index).distances(part.last_features_of(Body(60, 4), index))
        for part in (table, joined)
    )
    np.testing.assert_array_equal(alone, both)


def test_so_few_groups_that_no_class_can_be_left_out_are_no_skill(known):
    table, index, _ = known
    few = index.assign(group=index["class"])
    fold_of = fold_numbers(table.labels, few["group"].to_numpy(), 7, 0)
    shown = novelty.leave_classes_out(None, table, few[:80], fold_of[:80], Body(60, 4))
    score = novelty.score(shown)
    assert np.isnan(score["auroc"]) and not score["works"]
    assert "Too few groups to leave a class out" in describe(score)


def test_auroc_is_that_of_scikit_learn_and_chance_is_not_taken_for_skill():
    generator = np.random.default_rng(0)
    table = pd.DataFrame({"left_out": "a", "group": np.arange(300), "outside": np.arange(300) < 100})
    table["distance"] = generator.normal(size=300).round(1)
    score = novelty.score(table)
    assert score["auroc"] == pytest.approx(roc_auc_score(table["outside"], table["distance"]))
    assert score["auroc_ci95"][0] < 0.5 < score["auroc_ci95"][1] and not score["works"]
    assert "names one of its classes" in describe(score)
    perfect = novelty.score(table.assign(distance=table["outside"] + 0.0))
    assert perfect["auroc_ci95"][0] == 1 and perfect["works"]
    assert "says `unknown` **100%** of the time" in describe(perfect)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("사진"), np.random.default_rng(0)
    for number in range(24):
        grid = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8) // (1 + number % 3)
        Image.fromarray(grid).resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{number:02d}.png")
    return sorted(folder.glob("*.png"))


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_deployed_file_measures_as_training_did(conv_net, conv_net_file, prepared_conv_net, photos, tmp_path, kind):
    """In INT8, the features come in another order and are rounded."""
    transform = evaluation_transform(PREPROCESSING)
    images = torch.stack([transform(read_image(photo)) for photo in photos])
    features = last_block(extract_features(conv_net, DataLoader(TensorDataset(images), batch_size=64)), conv_net.sizes)
    detector = novelty.fit_detector(features, np.arange(24) % 3)
    expected, source = detector.distances(features), conv_net_file
    if kind == "int8":
        source = to_int8(prepared_conv_net, tmp_path / "int8.onnx", images.numpy())
    details = {"classes": CLASSES, "preprocessing": PREPROCESSING, "novelty": detector.tensors()}
    answers = conv_net(images).argmax(dim=1).numpy()
    write_checked(source, tmp_path / "deploy.onnx", details, photos, answers)
    outputs = [Classifier(tmp_path / "deploy.onnx").outputs(photo) for photo in photos]
    assert [value.name for value in onnx.load(tmp_path / "deploy.onnx").graph.output] == ["probabilities", "novelty"]
    found = np.array([output["novelty"] for output in outputs])
    assert found.shape == (24,) and outputs[0]["probabilities"].shape == (3,)
    np.testing.assert_allclose(found, expected, rtol=1e-3 if kind == "float" else 0.1)
    assert np.corrcoef(found, expected)[0, 1] > 0.95
