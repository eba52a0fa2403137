"""The table of features: rows belong to their images, and logits from it are those of the network."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import fill_folder
from nets import all_blocks
from torchvision.transforms import v2

from utils.datasets import Augmentation, ImageDataset, evaluation_transform, make_loader
from utils.features import extract_features
from utils.images import scan_folder
from utils.model import predict
from utils.train.feature_table import FeatureTable, extract
from utils.train.head import Head, attach

PREPROCESSING = {"image_size": 64, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.25] * 3}
CLASSES = ["apple", "tomato"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A table whose row labels are no positions, and what makes a Dataset of its rows; tomatoes get dark at random."""
    folder = fill_folder(tmp_path_factory.mktemp("table") / "사진", {"apple": 9, "tomato": 6})
    index, _ = scan_folder(folder)
    index = index.assign(group=index["path"]).set_index(index.index[::-1] * 7)
    basic = evaluation_transform(PREPROCESSING)
    darker = v2.Compose([v2.ColorJitter(brightness=(0.1, 0.5)), basic])

    def image_set(part: pd.DataFrame, augmented: tuple = ()) -> ImageDataset:
        return ImageDataset(folder, part, CLASSES, basic, Augmentation(darker, augmented))

    return index, image_set


@pytest.fixture(scope="module")
def table(photos) -> FeatureTable:
    return extract(all_blocks(2), photos[1], photos[0], {"tomato": 2})


def test_rows_belong_to_their_images_whatever_the_row_labels_are(photos, table):
    index, _ = photos
    assert len(table.paths) == 9 + 6 + 2 * 6 and list(table.paths[:15]) == list(index["path"])
    assert table.unaugmented.sum() == 15 and table.unaugmented[:15].all()
    part = index.sample(7, random_state=0)
    rows = table.of(part, augmented=[1])
    counts = pd.Series(rows.paths).value_counts()
    assert set(rows.paths) == set(part["path"])
    assert all(counts[path] == (3 if path.startswith("tomato") else 1) for path in part["path"])
    assert (rows.labels == [path.startswith("tomato") for path in rows.paths]).all()
    first, second = table.take(table.paths == index["path"].iloc[-1]).features[:2]
    assert (first != second).any(), "the version is the image itself"


def test_images_as_they_are_come_in_the_order_asked_for(photos, table):
    index, image_set = photos
    part = index.sample(7, random_state=1)
    plain = table.of(part)
    assert list(plain.paths) == list(part["path"]) and list(plain.groups) == list(part["group"])
    np.testing.assert_allclose(plain.features, extract_features(all_blocks(2), make_loader(image_set(part))), atol=1e-6)
    assert table.last_features_of(all_blocks(2), part).shape == (7, 4096)


def test_without_versions_there_is_a_row_per_image(photos):
    index, image_set = photos
    assert len(extract(all_blocks(2), image_set, index, {}).paths) == len(index)


def test_logits_from_features_are_those_of_the_network_and_of_a_fine_tuned_one(photos, table):
    index, image_set = photos
    model = attach(all_blocks(2), Head(table.sizes, 2).fit(table.features, table.labels))
    part = index.sample(7, random_state=0)
    expected, labels = predict(model, make_loader(image_set(part), 64))
    logits, same_labels = table.predict(model, part)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert (labels == same_labels).all() and table.threads(model) > 0
    with torch.no_grad():
        model.body.features[0][0].weight.mul_(-1)  # as fine-tuning does: the features are no longer this network's
    expected, _ = predict(model, make_loader(image_set(part), 64))
    assert np.abs(expected - logits).max() > 0.01
    np.testing.assert_allclose(table.predict(model, part)[0], expected, atol=1e-4)
    changed = table.last_features_of(model, part)
    assert np.abs(changed - table.of(part).features[:, -4096:]).max() > 0.01


def test_the_last_layer_of_a_copy_becomes_the_head(table):
    network = all_blocks(5)
    head = Head(table.sizes, 2).fit(table.features, table.labels)
    before = network.classifier.weight.clone()
    with torch.no_grad():
        logits = attach(network, head).classifier(torch.from_numpy(table.features)).numpy()
    np.testing.assert_allclose(logits, head.decision_function(table.features), rtol=1e-3, atol=1e-3)
    assert torch.equal(network.classifier.weight, before)
