"""Features: what the last layer sees, computed once, the same in every way of computing them."""

import numpy as np
import pytest
import torch
from nets import all_blocks
from torch.utils.data import DataLoader, TensorDataset

from utils import features as features_module
from utils.features import extract_features, last_block


@pytest.fixture
def loader():
    images = torch.rand(10, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(images, torch.zeros(10)), 4)


def test_features_are_what_the_last_layer_sees_and_the_network_stays_as_it_is(loader):
    model = all_blocks().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = extract_features(model, loader)
    images = torch.cat([images for images, _ in loader])
    with torch.no_grad():
        logits = model.eval()(images)
        np.testing.assert_allclose(model.classifier(torch.from_numpy(rows)), logits, atol=1e-5)
        last = model.body.forward_features(images).flatten(1)
    np.testing.assert_allclose(last_block(rows, model.sizes), last, atol=1e-5)
    assert last_block(rows, None) is rows
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_large_network_gives_the_same_features_faster_ways(loader, monkeypatch):
    model = all_blocks()
    rows = extract_features(model, loader)
    monkeypatch.setattr("utils.model.LARGE_NETWORK", 1)
    monkeypatch.setattr(features_module, "DEVICE", torch.device("cpu"))
    np.testing.assert_allclose(extract_features(model.cpu(), loader), rows, atol=1e-5)


def test_an_image_is_computed_once(loader, tmp_path, monkeypatch):
    model, counted = all_blocks(), []

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
        model.body.features[0][0].weight.add_(1)
    assert (extract_features(model, loader, tmp_path) != first).any() and sum(counted) == 21


def test_features_of_the_last_block_alone_are_not_mistaken_for_those_of_all(loader, tmp_path):
    model = all_blocks()
    everything = extract_features(model, loader, tmp_path)
    body = model.body
    body.set_submodule("classifier", torch.nn.Linear(4096, 3))
    alone = extract_features(body, loader, tmp_path)
    assert everything.shape == (10, sum(model.sizes)) and alone.shape == (10, 4096)
    np.testing.assert_array_equal(last_block(everything, model.sizes), alone)


def test_a_damaged_cache_is_computed_again(loader, tmp_path):
    model = all_blocks()
    first = extract_features(model, loader, tmp_path)
    file = next(tmp_path.rglob("*.npy"))
    file.write_bytes(file.read_bytes()[:100])
    assert (extract_features(model, loader, tmp_path) == first).all()
    assert (extract_features(model, loader, tmp_path) == first).all()
