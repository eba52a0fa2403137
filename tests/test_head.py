"""The linear head: it tells classes apart, survives 8 bits, and nothing of it leaks."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch.utils.data import DataLoader, TensorDataset

from utils import features as features_module
from utils.features import extract_features
from utils.model import ConvNet
from utils.train.head import compare_recipes, fit_head, head_logits, head_out_of_fold, set_head


def clouds(
    classes: int, per_class: int, seed: int = 0, spread: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gaussian clouds in 30 dimensions, of different scales; four rows a group."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    centers = np.random.default_rng(99).normal(size=(classes, 30))
    rows = (centers[labels] + spread * generator.normal(size=(len(labels), 30))) * np.geomspace(0.1, 10, 30) + 7
    return rows.astype(np.float32), labels, np.arange(len(labels)) // 4


@pytest.mark.parametrize("classes", [2, 4])
def test_a_head_tells_new_rows_apart(classes):
    head = fit_head(*clouds(classes, 40), classes)
    rows, labels, _ = clouds(classes, 40, seed=1)
    assert head[0].shape == (classes, 30) and head[1].shape == (classes,)
    assert f1_score(labels, head_logits(head, rows).argmax(1), average="macro") > 0.95


@pytest.mark.parametrize("still", [0, 1e-3])
def test_answers_survive_that_features_are_rounded_to_eight_bits(still):
    """Beside what moves, features that hardly do, as under a plain background: they know the class, but not in INT8."""
    rows, labels, groups = clouds(3, 40, spread=2)
    generator = np.random.default_rng(5)
    hardly = generator.uniform(4, 6, 300) + still * (labels[:, None] + generator.normal(size=(len(labels), 300)))
    rows = np.hstack([rows[:, 15:], hardly]).astype(np.float32)
    head, step = fit_head(rows, labels, groups, 3), np.ptp(rows) / 255
    same = head_logits(head, rows).argmax(1) == head_logits(head, np.round(rows / step) * step).argmax(1)
    assert same.mean() > 0.97


def test_a_class_without_rows_is_never_the_answer():
    rows, labels, groups = clouds(3, 20)
    head = fit_head(rows[labels != 1], labels[labels != 1], groups[labels != 1], 4)
    assert set(head_logits(head, rows).argmax(1)) <= {0, 2}


def test_the_last_layer_of_a_network_becomes_the_head():
    model, rows = ConvNet(2), np.random.default_rng(0).normal(size=(5, 4096)).astype(np.float32)
    head = np.random.default_rng(1).normal(size=(2, 4096)), np.array([1.0, -1.0])
    set_head(model, head)
    with torch.no_grad():
        given = model.classifier(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(given, head_logits(head, rows), rtol=1e-4)


def test_out_of_fold_is_chance_when_labels_mean_nothing():
    """Groups of identical rows with random labels: whoever has seen the group knows the answer."""
    generator = np.random.default_rng(0)
    rows = np.repeat(generator.normal(size=(60, 30)), 4, axis=0)
    labels, groups = np.repeat(generator.permutation(np.arange(60) % 2), 4), np.repeat(np.arange(60), 4)
    logits = head_out_of_fold(rows, np.arange(240), labels, groups)
    assert 0.3 < (logits.argmax(1) == labels).mean() < 0.7


def test_a_version_of_an_image_is_in_the_fold_of_the_image():
    """The versions carry the label outright; if they were trained on, the images would be known."""
    generator = np.random.default_rng(0)
    rows, labels = generator.normal(size=(80, 30)), np.arange(80) % 2
    both = np.concatenate([rows, rows])
    logits = head_out_of_fold(both, np.tile(np.arange(80), 2), labels, np.arange(80))
    assert (logits.argmax(1) == labels).mean() < 0.75


def test_the_recipe_that_helps_is_seen():
    """Views of all classes cover what the images differ in; those of the minority alone do so for one class."""
    rows, labels, groups = clouds(3, 60, spread=3.0)
    keep = np.concatenate([np.arange(120), 120 + np.arange(20)])
    rows, labels, groups = rows[keep], labels[keep], groups[keep]
    better, _, _ = clouds(3, 60, seed=5, spread=3.0)
    views = np.concatenate([rows, *(better[keep] for _ in range(2))])
    table = compare_recipes(views, np.tile(np.arange(140), 3), labels, groups, minority=[2])
    assert list(table.index) == ["minority only", "none", "all classes", "class weights", "oversampling"]
    assert table.loc["minority only", ["difference", "low", "high"]].abs().max() == 0
    assert (table["low"] <= table["difference"]).all() and (table["difference"] <= table["high"]).all()
    assert table["difference"]["all classes"] > 0


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
    monkeypatch.setattr(features_module, "LARGE", 1)
    monkeypatch.setattr(features_module, "DEVICE", torch.device("cpu"))
    np.testing.assert_allclose(extract_features(model.cpu(), loader), rows, atol=1e-5)


def test_an_image_is_computed_once(loader, tmp_path, monkeypatch):
    model, counted = ConvNet(3), []
    compile_ = features_module._compile

    def counting(*arguments):
        run = compile_(*arguments)
        return lambda images: counted.append(len(images)) or run(images)

    monkeypatch.setattr(features_module, "_compile", counting)
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
