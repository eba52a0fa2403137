"""The linear head: it tells classes apart, survives 8 bits, and nothing of it leaks."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import fill_folder
from sklearn.metrics import f1_score
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from utils import features as features_module
from utils.datasets import Augmentation, ImageDataset, evaluation_transform, make_loader
from utils.features import extract_features
from utils.images import scan_folder
from utils.model import ConvNet, predict
from utils.train.head import Views, attach_head, extract_views, fit_head
from utils.train.strategies import artefact_rate, compare_strategies, heads_out_of_fold

PREPROCESSING = {"image_size": 64, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.25] * 3}


def clouds(classes: int, per_class: int, seed: int = 0, spread: float = 1.0) -> Views:
    """Gaussian clouds in 30 dimensions, of different scales; four rows a group."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    centers = np.random.default_rng(99).normal(size=(classes, 30))
    rows = (centers[labels] + spread * generator.normal(size=(len(labels), 30))) * np.geomspace(0.1, 10, 30) + 7
    return Views(rows.astype(np.float32), np.arange(len(labels)).astype(str), labels, np.arange(len(labels)) // 4)


def logits_of(head: tuple[np.ndarray, np.ndarray], features: np.ndarray) -> np.ndarray:
    weight, bias = head
    return features @ weight.T + bias


@pytest.mark.parametrize("classes", [2, 4])
def test_a_head_tells_new_rows_apart(classes):
    head = fit_head(clouds(classes, 40), classes)
    new = clouds(classes, 40, seed=1)
    assert head[0].shape == (classes, 30) and head[1].shape == (classes,)
    assert f1_score(new.labels, logits_of(head, new.features).argmax(1), average="macro") > 0.95


@pytest.mark.parametrize("still", [0, 1e-3])
def test_answers_survive_that_features_are_rounded_to_eight_bits(still):
    """Beside what moves, features that hardly do, as under a plain background: they know the class, but not in INT8."""
    views = clouds(3, 40, spread=2)
    generator = np.random.default_rng(5)
    labels = views.labels[:, None]
    hardly = generator.uniform(4, 6, 300) + still * (labels + generator.normal(size=(len(labels), 300)))
    rows = np.hstack([views.features[:, 15:], hardly]).astype(np.float32)
    head, step = fit_head(views._replace(features=rows), 3), np.ptp(rows) / 255
    same = logits_of(head, rows).argmax(1) == logits_of(head, np.round(rows / step) * step).argmax(1)
    assert same.mean() > 0.97


def test_a_class_without_rows_is_never_the_answer():
    views = clouds(3, 20)
    head = fit_head(views.take(views.labels != 1), 4)
    assert set(logits_of(head, views.features).argmax(1)) <= {0, 2}


def test_the_last_layer_of_a_copy_becomes_the_head():
    network, rows = ConvNet(5), np.random.default_rng(0).normal(size=(5, 4096)).astype(np.float32)
    head = np.random.default_rng(1).normal(size=(2, 4096)), np.array([1.0, -1.0])
    before = network.classifier.weight.clone()
    with torch.no_grad():
        given = attach_head(network, head).classifier(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(given, logits_of(head, rows), rtol=1e-4)
    assert torch.equal(network.classifier.weight, before)


def test_out_of_fold_is_chance_when_labels_mean_nothing():
    """Groups of identical rows with random labels: whoever has seen the group knows the answer."""
    generator = np.random.default_rng(0)
    rows = np.repeat(generator.normal(size=(60, 30)), 4, axis=0)
    labels, groups = np.repeat(generator.permutation(np.arange(60) % 2), 4), np.repeat(np.arange(60), 4)
    (logits,) = heads_out_of_fold([(Views(rows, np.arange(240), labels, groups), None)])
    assert 0.3 < (logits.argmax(1) == labels).mean() < 0.7


def test_a_version_of_an_image_is_in_the_fold_of_the_image():
    """The versions carry the label outright; if they were trained on, the images would be known."""
    generator = np.random.default_rng(0)
    rows, labels, images = generator.normal(size=(80, 30)), np.arange(80) % 2, np.arange(80)
    twice = np.tile(np.arange(80), 2)
    (logits,) = heads_out_of_fold([(Views(rows, images, labels, images).take(twice), None)])
    assert (logits.argmax(1) == labels).mean() < 0.75


def test_the_strategy_that_helps_is_seen():
    """Views of all classes cover what the images differ in; those of the minority alone do so for one class."""
    keep = np.concatenate([np.arange(120), 120 + np.arange(20)])
    views, better = clouds(3, 60, spread=3.0).take(keep), clouds(3, 60, seed=5, spread=3.0).take(keep)
    rows = np.concatenate([views.features, better.features, better.features])
    table = compare_strategies(views.take(np.tile(np.arange(140), 3))._replace(features=rows), minority=[2])
    assert list(table.index) == ["minority only", "none", "all classes", "class weights", "oversampling"]
    assert table.loc["minority only", ["difference", "low", "high"]].abs().max() == 0
    assert (table["low"] <= table["difference"]).all() and (table["difference"] <= table["high"]).all()
    assert table["difference"]["all classes"] > 0


# --- views of photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A table whose row labels are no positions, and what makes a Dataset of its rows; tomatoes get dark at random."""
    folder = fill_folder(tmp_path_factory.mktemp("views") / "사진", {"apple": 9, "tomato": 6})
    index, _ = scan_folder(folder)
    index = index.assign(group=index["path"]).set_index(index.index[::-1] * 7)
    basic = evaluation_transform(PREPROCESSING)
    darker = v2.Compose([v2.ColorJitter(brightness=(0.1, 0.5)), basic])

    def image_set(part: pd.DataFrame, augmented: tuple = ()) -> ImageDataset:
        return ImageDataset(folder, part, ["apple", "tomato"], basic, Augmentation(darker, augmented))

    return index, image_set


def test_views_belong_to_their_images_whatever_the_row_labels_are(photos):
    index, image_set = photos
    views = extract_views(ConvNet(2), image_set, index, {"tomato": 2})
    assert len(views.paths) == 9 + 6 + 2 * 6 and list(views.paths[:15]) == list(index["path"])
    part = index.sample(7, random_state=0)
    own = views.of(part)
    assert set(own.paths) == set(part["path"])
    counts = pd.Series(own.paths).value_counts()
    assert all(counts[path] == (3 if path.startswith("tomato") else 1) for path in part["path"])
    assert (own.labels == [path.startswith("tomato") for path in own.paths]).all()
    first, second = views.take(views.paths == index["path"].iloc[-1]).features[:2]
    assert (first != second).any(), "the version is the image itself"


def test_logits_from_features_are_those_of_the_network(photos):
    index, image_set = photos
    network = ConvNet(2)
    views = extract_views(network, image_set, index, {"tomato": 1})
    model = attach_head(network, fit_head(views, 2))
    part = index.sample(7, random_state=0)
    expected, labels = predict(model, make_loader(image_set(part), 64))
    logits, same_labels = views.predict(model, part)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert (labels == same_labels).all()
    with torch.no_grad():
        model.features[0][0].weight.mul_(-1)  # as fine-tuning does: the features are no longer this network's
    expected, _ = predict(model, make_loader(image_set(part), 64))
    assert np.abs(expected - logits).max() > 0.01
    np.testing.assert_allclose(views.predict(model, part)[0], expected, atol=1e-4)


def test_an_augmentation_that_gives_the_class_away_is_noticed(photos):
    """A network that takes all that is dark for a tomato."""
    index, image_set = photos
    others = index[index["class"] == "apple"]

    class Dark(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            brightness = self.scale * images.mean(dim=(1, 2, 3))
            return torch.stack([brightness, torch.zeros_like(brightness)], dim=1)

    varied = image_set(others, ["apple", "tomato"])
    assert artefact_rate(Dark(), image_set(others), varied, minority=[1], epochs=2) > 0.8
    assert artefact_rate(Dark(), image_set(others), image_set(others), minority=[1], epochs=2) == 0
    assert artefact_rate(Dark(), image_set(others), varied, minority=[], epochs=2) is None


# --- features


@pytest.fixture
def loader():
    images = torch.rand(10, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(images, torch.zeros(10)), 4)


def test_features_are_what_the_last_layer_sees_and_the_network_stays_as_it_is(loader):
    model = ConvNet(3).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = extract_features(model, loader)
    images = torch.cat([images for images, _ in loader])
    with torch.no_grad():
        logits = model.eval()(images)
        np.testing.assert_allclose(model.classifier(torch.from_numpy(rows)), logits, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_large_network_gives_the_same_features_faster_ways(loader, monkeypatch):
    model = ConvNet(3)
    rows = extract_features(model, loader)
    monkeypatch.setattr("utils.model.LARGE_NETWORK", 1)
    monkeypatch.setattr(features_module, "DEVICE", torch.device("cpu"))
    np.testing.assert_allclose(extract_features(model.cpu(), loader), rows, atol=1e-5)


def test_an_image_is_computed_once(loader, tmp_path, monkeypatch):
    model, counted = ConvNet(3), []

    class Counting(features_module._Runner):
        def __call__(self, images: torch.Tensor) -> np.ndarray:
            counted.append(len(images))
            return super().__call__(images)

    monkeypatch.setattr(features_module, "_Runner", Counting)
    first = extract_features(model, loader, tmp_path)
    assert (extract_features(model, loader, tmp_path) == first).all() and sum(counted) == 10
    changed = loader.dataset.tensors[0].clone()
    changed[3] += 1
    other = extract_features(model, DataLoader(TensorDataset(changed, torch.zeros(10)), 4), tmp_path)
    assert sum(counted) == 11 and (other[3] != first[3]).any()
    assert (np.delete(other, 3, 0) == np.delete(first, 3, 0)).all()
    with torch.no_grad():
        model.classifier.weight.add_(1)  # the last layer has no part in it
    extract_features(model, loader, tmp_path)
    assert sum(counted) == 11
    with torch.no_grad():
        model.features[0][0].weight.add_(1)
    assert (extract_features(model, loader, tmp_path) != first).any() and sum(counted) == 21


def test_a_damaged_cache_is_computed_again(loader, tmp_path):
    model = ConvNet(3)
    first = extract_features(model, loader, tmp_path)
    file = next(tmp_path.rglob("*.npz"))
    file.write_bytes(file.read_bytes()[:100])
    assert (extract_features(model, loader, tmp_path) == first).all()
    assert (extract_features(model, loader, tmp_path) == first).all()
