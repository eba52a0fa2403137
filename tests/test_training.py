"""Training stops when it is lost, keeps its best epoch, and never trains on what it is judged by."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import fill_folder

from utils import training
from utils.config import InputError, seed_everything
from utils.datasets import ImageDataset, evaluation_transform, make_loader
from utils.images import scan_folder
from utils.metrics import macro_f1
from utils.model import DEVICE, ConvNet, predict
from utils.training import cross_validate, fine_tune, train_epoch

PREPROCESSING = {"image_size": 64, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.25] * 3}
CLASSES = ["apple", "tomato"]


@pytest.fixture(autouse=True)
def one_thread():
    """On a busy machine the threads of a tiny network wait for each other a hundred times as long as they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = fill_folder(tmp_path_factory.mktemp("내 문서") / "사진 모음", {"apple": 18, "tomato": 12})
    index, _ = scan_folder(folder)
    index["group"] = [f"{name}{number // 3}" for name, number in zip(index["class"], index.index, strict=True)]
    return folder, index


def image_set(folder, part: pd.DataFrame) -> ImageDataset:
    return ImageDataset(folder, part, CLASSES, evaluation_transform(PREPROCESSING))


def conv_net() -> tuple[ConvNet, dict]:
    return ConvNet(len(CLASSES)).to(DEVICE), PREPROCESSING


def test_an_epoch_lowers_the_loss(data):
    seed_everything(0)
    dataset, model = image_set(*data), conv_net()[0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = [train_epoch(model, make_loader(dataset, 8, epoch=epoch), optimizer) for epoch in (1, 2, 3)]
    assert losses[2] < losses[0] / 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_training(data, value):
    model = conv_net()[0]
    with torch.no_grad():
        model.classifier.weight.fill_(value)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="training loss became nan: lower LEARNING_RATE and run training again"):
        train_epoch(model, make_loader(image_set(*data), 8, epoch=1), optimizer)


def test_the_best_epoch_is_kept_and_not_the_last(data, monkeypatch):
    """The epochs' weights are set by hand: the second one is right about every image, the last one about few."""
    folder, index = data
    valid_loader = make_loader(image_set(folder, index), 64)
    seed_everything(0)
    good = fine_tune(conv_net()[0], image_set(folder, index), valid_loader, 4, 8, 1e-3).state_dict()
    good = {name: value.clone() for name, value in good.items()}
    bad = good | {name: -good[name] for name in ("classifier.weight", "classifier.bias")}
    epochs = iter([bad, good, bad])

    def set_weights(model, loader, optimizer):
        model.load_state_dict(next(epochs))
        return 0.0

    monkeypatch.setattr(training, "train_epoch", set_weights)
    kept = fine_tune(conv_net()[0], image_set(folder, index), valid_loader, 3, 8, 1e-3)
    logits, labels = predict(kept, valid_loader)
    assert macro_f1(labels, logits.argmax(1), 2) > 0.9
    assert all(torch.equal(value, good[name]) for name, value in kept.state_dict().items())


def test_every_image_is_predicted_once_by_a_network_that_saw_nothing_of_its_group(data):
    folder, index = data
    trained, evaluated = [], []

    def recording(part: pd.DataFrame, training: bool = False) -> ImageDataset:
        (trained if training else evaluated).append(part)
        return image_set(folder, part)

    recipe = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-3}
    logits = cross_validate(index, index["group"], recording, conv_net, folds=3, **recipe)
    assert logits.shape == (len(index), 2) and np.isfinite(logits).all()
    assert macro_f1(np.array(image_set(folder, index).labels), logits.argmax(1), 2) > 0.8
    valid, test = evaluated[0::2], evaluated[1::2]
    assert sorted(pd.concat(test)["path"]) == sorted(index["path"])
    for parts in zip(trained, valid, test, strict=True):
        groups = [set(part["group"]) for part in parts]
        assert groups[0] and not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]


def test_the_same_seed_gives_the_same_predictions(data):
    folder, index = data

    def run(seed: int) -> np.ndarray:
        recipe = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3}
        make = lambda part, training=False: image_set(folder, part)  # noqa: E731
        return cross_validate(index, index["group"], make, conv_net, folds=3, seed=seed, **recipe)

    first = run(1)
    assert (first == run(1)).all()
    assert (first != run(2)).any()
