"""Training stops when it is lost, keeps its best epoch, and never trains on what it is judged by."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import fill_folder

from utils import training
from utils.checkpoint import save_checkpoint
from utils.config import InputError, seed_everything
from utils.cross_validation import cross_validate
from utils.datasets import ImageDataset, evaluation_transform, make_loader
from utils.images import scan_folder
from utils.metrics import macro_f1
from utils.model import DEVICE, ConvNet, predict
from utils.train.head import view_features
from utils.train.training import (
    best_epoch,
    fine_tune,
    head_then_fine_tune,
    make_optimizer,
    resume_training,
    train_epoch,
)

PREPROCESSING = {"image_size": 64, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.25] * 3}
CLASSES = ["apple", "tomato"]


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

    def set_weights(model, *_):
        model.load_state_dict(next(epochs))
        return 0.0

    monkeypatch.setattr(training, "train_epoch", set_weights)
    start = conv_net()[0]
    start.load_state_dict(bad)
    kept = fine_tune(start, image_set(folder, index), valid_loader, 3, 8, 1e-3)
    logits, labels = predict(kept, valid_loader)
    assert macro_f1(labels, logits.argmax(1), 2) > 0.9
    assert all(torch.equal(value, good[name]) for name, value in kept.state_dict().items())


@pytest.mark.parametrize(
    ("scores", "losses", "best"),
    [
        ([0.5, 0.9, 0.7], [1.0, 1.0, 0.1], 1),
        ([0.9, 0.9, 0.9], [0.3, 0.1, 0.2], 1),  # ties: the lower loss
        ([0.9, 0.9], [0.2, 0.2], 0),  # and then the earlier, which is the head alone
        ([0.0, 0.0, 0.0], [2.0, 1.0, 3.0], 1),  # nothing learned is still an answer
    ],
)
def test_which_epoch_is_the_best(scores, losses, best):
    assert best_epoch(pd.DataFrame({"valid_macro_f1": scores, "valid_loss": losses})) == best


def test_the_head_learns_faster_than_what_is_pretrained_and_rates_fall_in_the_end():
    model = conv_net()[0]
    optimizer, schedule = make_optimizer(model, 1e-3, steps=10)
    rates = []
    for _ in range(10):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    body, head = np.array(rates).T
    assert np.allclose(head / body, training.SLOWER) and head.max() == pytest.approx(1e-3)
    assert head.argmax() == 2 and head[-1] < head[0] < head[2]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def train(folder, index, epochs, stop_after, path, resume=False):
    """The loop of train.ipynb, ended early."""
    seed_everything(0)
    model, dataset = conv_net()[0], image_set(folder, index)
    optimizer, schedule = make_optimizer(model, 1e-3, epochs * len(make_loader(dataset, 8, epoch=1)))
    history = resume_training(path, model, optimizer, schedule, {"SEED": 0, "epochs": epochs}) if resume else []
    for epoch in range(len(history) + 1, stop_after + 1):
        history.append([train_epoch(model, make_loader(dataset, 8, epoch=epoch), optimizer, schedule), 0.0, 0.0])
        states = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(), "history": history}
        details = {"arch": "conv_net", "classes": CLASSES, "preprocessing": PREPROCESSING}
        save_checkpoint(path, model, **details, **states, run={"SEED": 0, "epochs": epochs})
    return model.state_dict(), history


def test_a_resumed_training_ends_with_the_same_bits(data, tmp_path):
    whole, losses = train(*data, 4, 4, tmp_path / "whole.pth")
    train(*data, 4, 2, tmp_path / "last.pth")
    resumed, resumed_losses = train(*data, 4, 4, tmp_path / "last.pth", resume=True)
    assert resumed_losses == losses
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_resuming_with_other_settings_is_refused_and_without_a_file_starts_anew(data, tmp_path):
    assert train(*data, 2, 0, tmp_path / "none.pth", resume=True)[1] == []
    train(*data, 3, 1, tmp_path / "last.pth")
    with pytest.raises(InputError, match="last.pth was trained with another epochs: .*RESUME = False"):
        train(*data, 5, 5, tmp_path / "last.pth", resume=True)


# --- in folds


def whole_recipe(folder, index, epochs):
    def versions(part, augmented=()):
        return image_set(folder, part)

    model = conv_net()[0]
    features, rows = view_features(model, versions, index, [], 0)
    codes = index["group"].factorize()[0]
    options = {"features": features, "rows": rows, "codes": codes, "image_set": versions, "augmented": []}
    return model, partial(head_then_fine_tune, model=model, **options, epochs=epochs, batch_size=8, learning_rate=1e-3)


@pytest.mark.parametrize("epochs", [0, 2])
def test_the_weights_of_a_fold_give_its_answers(data, epochs):
    folder, index = data
    seed_everything(0)
    model, recipe = whole_recipe(folder, index, epochs)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parts = index[index.index % 3 == 0], index[index.index % 3 == 1], index[index.index % 3 == 2]
    logits, state = recipe(*parts)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "the fresh net changed"
    assert (len(state) == 2) == (epochs == 0)
    assert all(value.dtype == before[name].dtype for name, value in state.items())
    model.load_state_dict(state, strict=False)
    again, labels = predict(model, make_loader(image_set(folder, parts[2]), 64))
    np.testing.assert_allclose(logits, again, atol=1e-4)
    assert macro_f1(labels, logits.argmax(1), 2) > 0.7


def test_every_image_is_predicted_once_by_a_network_that_saw_nothing_of_its_group(data):
    _, index = data
    rounds = []

    def recipe(*parts):
        rounds.append(parts)
        return np.full((len(parts[2]), 2), len(rounds)), {"round": torch.tensor(len(rounds))}

    found = cross_validate(index, index["group"], recipe, folds=3, repeats=2)
    assert found.logits.shape == (2, len(index), 2)
    assert (found.logits[0, :, 0] == found.folds[0] + 1).all() and (found.logits[1, :, 0] == found.folds[1] + 4).all()
    assert (found.folds[0] != found.folds[1]).any(), "the repeats have the same folds"
    for train_part, valid, test in rounds:
        groups = [set(part["group"]) for part in (train_part, valid, test)]
        assert groups[0] and not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
        assert len(train_part) + len(valid) + len(test) == len(index)
    assert sorted(file for network in found.networks for file in network["files"]) == sorted(index["path"])
    with pytest.raises(InputError, match="FOLDS is 2: at least 3"):
        cross_validate(index, index["group"], recipe, folds=2, repeats=1)


def test_the_same_seed_gives_the_same_predictions(data):
    folder, index = data

    def run(seed: int) -> np.ndarray:
        seed_everything(0)
        _, recipe = whole_recipe(folder, index, epochs=1)
        return cross_validate(index, index["group"], recipe, folds=3, repeats=1, seed=seed).logits

    first = run(1)
    assert (first == run(1)).all()
    assert (first != run(2)).any()
