"""Training stops when it is lost, keeps its best epoch, and never trains on what it is judged by."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import fill_folder, photo
from nets import all_blocks

from bench.notebooks import define_training, run_cells
from utils import model as model_module
from utils.checkpoint import load_folds, save_checkpoint, save_folds
from utils.config import InputError, seed_everything
from utils.cross_validation import OutOfFold, cross_validate, keep_folds, plan_folds
from utils.datasets import ImageDataset, evaluation_transform, make_loader
from utils.features import fingerprint
from utils.images import scan_folder
from utils.metrics import macro_f1
from utils.model import DEVICE, AllBlocks, ConvNet, load_model, predict
from utils.split import save_index, split_index
from utils.train.training import HEAD_RATE, Record, best_epoch, make_optimizer, train_epoch

PREPROCESSING = {"image_size": 64, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.25] * 3}
CLASSES = ["apple", "tomato"]
DETAILS = {"arch": "conv_net", "classes": CLASSES, "preprocessing": PREPROCESSING, "split_hash": "0"}
DETAILS |= {"features": "all blocks"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = fill_folder(tmp_path_factory.mktemp("내 문서") / "사진 모음", {"apple": 18, "tomato": 12})
    index, _ = scan_folder(folder)
    index["group"] = [f"{name}{number // 3}" for name, number in zip(index["class"], index.index, strict=True)]
    return folder, index


def image_set(folder, part: pd.DataFrame) -> ImageDataset:
    return ImageDataset(folder, part, CLASSES, evaluation_transform(PREPROCESSING))


def conv_net() -> AllBlocks:
    """A network as train.ipynb trains it, with random weights."""
    return all_blocks(len(CLASSES)).to(DEVICE)


def test_an_epoch_lowers_the_loss(data):
    seed_everything(0)
    dataset, model = image_set(*data), conv_net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = [train_epoch(model, make_loader(dataset, 8, epoch=epoch), optimizer) for epoch in (1, 2, 3)]
    assert losses[2] < losses[0] / 2


def test_balanced_classes_weigh_alike_whatever_their_number_of_images(data):
    """18 apples and 12 tomatoes in one batch, and a third class without any."""
    dataset, model = image_set(*data), all_blocks(3).to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loss = train_epoch(model, make_loader(dataset, 30, epoch=1), optimizer, class_weight="balanced")
    labels = torch.tensor(dataset.labels)
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(model(dataset.stack().to(DEVICE)).cpu(), labels, reduction="none")
    assert loss == pytest.approx((losses[labels == 0].mean() + losses[labels == 1].mean()).item() / 2, rel=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_training(data, value):
    model = conv_net()
    with torch.no_grad():
        model.classifier.weight.fill_(value)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="training loss became nan: lower LEARNING_RATE and run training again"):
        train_epoch(model, make_loader(image_set(*data), 8, epoch=1), optimizer)


@pytest.mark.parametrize("on_disk", [False, True])
def test_the_best_epoch_is_kept_and_not_the_last(tmp_path, on_disk):
    """The second of three epochs is right about every image; its weights are all 2."""
    path = tmp_path / "best.pth"
    record, model, labels = Record(path, DETAILS) if on_disk else Record(), conv_net(), np.array([0, 1])
    for epoch, logits in enumerate([[[1, 0], [1, 0]], [[1, 0], [0, 1]], [[0, 1], [1, 0]]]):
        with torch.no_grad():
            model.classifier.weight.fill_(epoch + 1)
        record.add(model, 0.5, np.array(logits, dtype=float), labels)
    assert best_epoch(record.history) == 1 and (record.history["valid_macro_f1"].round(2) == [0.33, 1, 0]).all()
    assert (record.best_model(model).classifier.weight == 2).all()
    if on_disk:
        saved, details = load_model(path)
        assert (saved.classifier.weight == 2).all() and details["metrics"]["epoch"] == 1


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


def test_a_training_stopped_before_its_first_epoch_says_so():
    with pytest.raises(InputError, match="no epoch was finished.*run training again"):
        best_epoch(Record().history)


def test_the_head_learns_faster_than_what_is_pretrained_and_rates_fall_in_the_end():
    model = conv_net()
    optimizer, schedule = make_optimizer(model, 1e-3, steps=10)
    rates = []
    for _ in range(10):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    body, head = np.array(rates).T
    assert np.allclose(head / body, HEAD_RATE) and head.max() == pytest.approx(1e-3)
    assert head.argmax() == 2 and head[-1] < head[0] < head[2]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


# --- in folds


def test_every_image_is_predicted_once_by_a_network_that_saw_nothing_of_its_group(data):
    _, index = data
    index = index.set_index(index.index + 100)  # rows are found by position, whatever their labels are
    rounds = []

    def fit(train_part: pd.DataFrame, valid: pd.DataFrame) -> ConvNet:
        network = ConvNet(2)
        network.parts = [train_part, valid]
        rounds.append(network.parts)
        return network

    def answer(model: ConvNet, test: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        model.parts.append(test)
        return np.tile(test.index.to_numpy()[:, None], 2), (test["class"] == "tomato").to_numpy(int)

    fold_of = plan_folds(index, folds=3, repeats=2)
    found = cross_validate(index, fold_of, fit, answer, ConvNet(2))
    assert found.logits.shape == (2, len(index), 2)
    assert (found.logits == index.index.to_numpy()[None, :, None]).all() and len(rounds) == 6
    assert (found.labels == (index["class"] == "tomato")).all()
    assert (fold_of[0] != fold_of[1]).any(), "the repeats have the same folds"
    for train_part, valid, test in rounds:
        groups = [set(part["group"]) for part in (train_part, valid, test)]
        assert groups[0] and not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
        assert len(train_part) + len(valid) + len(test) == len(index)
    assert sorted(file for network in found.networks for file in network["files"]) == sorted(index["path"])


def test_a_class_of_three_groups_costs_the_others_no_training_images():
    """Seven folds all the same; each trains on five of them, and on every class."""
    groups = pd.Series(
        [f"{name}{number}" for name, count in {"a": 30, "b": 30, "rare": 3}.items() for number in range(count)]
    )
    groups = groups.repeat(3).reset_index(drop=True)
    index = pd.DataFrame({"path": groups.index.astype(str), "class": groups.str.rstrip("0123456789"), "group": groups})
    trained_on = []

    def fit(train_part: pd.DataFrame, valid: pd.DataFrame) -> ConvNet:
        trained_on.append(len(train_part) / len(index))
        assert set(train_part["class"]) == {"a", "b", "rare"}
        return ConvNet(3)

    fold_of = plan_folds(index, folds=7, repeats=1)
    found = cross_validate(index, fold_of, fit, lambda model, test: (np.zeros((len(test), 3)), 0), ConvNet(3))
    assert len(trained_on) == 7 and min(trained_on) > 0.65 and max(trained_on) < 0.77
    assert found.trained_on == pytest.approx(np.mean(trained_on))


def notebook_training(data, folder: Path, epochs: int, seed: int = 0) -> dict:
    """The transforms, the features and the training that train.ipynb shows, on a few images."""
    names = run_cells("train", ["imports", "parameters"], {})
    names.update(ARCH="conv_net", SEED=seed, BATCH_SIZE=8, VERSIONS=1, AUGMENT="minority", FINE_TUNE_EPOCHS=epochs)
    names.update(data=data[0], run=folder, index=data[1], classes=CLASSES, minority=["tomato"])
    return define_training(names)


@pytest.mark.parametrize("epochs", [0, 2])
def test_the_networks_of_the_folds_are_rebuilt_from_the_shipped_one_without_pretrained_weights(
    data, tmp_path, monkeypatch, epochs
):
    names, index = notebook_training(data, tmp_path, epochs), data[1]
    before = copy.deepcopy(names["backbone"].state_dict())
    fold_of = plan_folds(index, folds=3, repeats=1)
    trained = names["fit"](index[fold_of[0] > 0], index[fold_of[0] == 0])
    details = DETAILS | {"preprocessing": names["preprocessing"]}
    save_checkpoint(tmp_path / "fine_tuned_conv_net.pth", trained, **details)
    shipped, _ = load_model(tmp_path / "fine_tuned_conv_net.pth")
    oof = cross_validate(index, fold_of, names["fit"], names["table"].predict, shipped)
    assert all(torch.equal(value, before[name]) for name, value in names["backbone"].state_dict().items())
    assert macro_f1(oof.labels, oof.logits[0].argmax(axis=1), 2) > 0.9
    path = tmp_path / "folds_conv_net.pth"
    save_folds(path, oof.networks, fingerprint(shipped, whole=True), **details)
    only_last_layer = [len(network["state"]) == 2 for network in oof.networks]
    assert all(only_last_layer) if epochs == 0 else not all(only_last_layer)

    monkeypatch.setattr(model_module, "CHECKPOINTS", tmp_path / "no pretrained weights here")
    model, _ = load_model(tmp_path / "fine_tuned_conv_net.pth")
    for network in load_folds(path, split_hash="0", shipped=fingerprint(model, whole=True))["folds"]:
        rebuilt = copy.deepcopy(model)
        rebuilt.load_state_dict(network["state"], strict=False)
        held_out = index["path"].isin(network["files"]).to_numpy()
        logits, _ = predict(rebuilt, make_loader(names["image_set"](index[held_out]), 64))
        np.testing.assert_allclose(logits, oof.logits[0, held_out], atol=1e-4)


def test_folds_of_another_training_or_split_are_refused_with_the_next_step(tmp_path):
    path, shipped, other = tmp_path / "folds_conv_net.pth", ConvNet(2), ConvNet(2)
    save_folds(path, [], fingerprint(shipped, whole=True), **DETAILS)
    assert load_folds(path, split_hash="0", shipped=fingerprint(shipped, whole=True))["classes"] == CLASSES
    step = "run train.ipynb to make it again, or set FOLD_NETWORKS = 0"
    with pytest.raises(InputError, match=f"folds_conv_net.pth belongs to another training than .*: {step}"):
        load_folds(path, split_hash="0", shipped=fingerprint(other, whole=True))
    with pytest.raises(InputError, match=f"folds_conv_net.pth belongs to another split.csv than .*: {step}"):
        load_folds(path, split_hash="1", shipped=fingerprint(shipped, whole=True))


def test_folds_are_trained_again_only_when_something_has_changed(tmp_path):
    path, trained, network, other = tmp_path / "folds_conv_net.pth", [], ConvNet(2), ConvNet(2)

    def folds(parts: list, shipped: ConvNet = network) -> OutOfFold:
        def compute(shipped: ConvNet) -> OutOfFold:
            trained.append(shipped)
            networks = [{"files": ["a.jpg"], "state": {"bias": torch.ones(2)}}]
            return OutOfFold(np.full((1, 3, 2), len(trained), np.float32), np.arange(3), networks, 0.7)

        return keep_folds(path, parts, compute, shipped, **DETAILS)

    first, second = folds([1]), folds([1])
    known = load_folds(path, split_hash="0", shipped=fingerprint(network, whole=True))
    assert len(trained) == 1 and known["folds"][0]["files"] == ["a.jpg"]
    assert (first.logits == second.logits).all() and (first.labels == second.labels).all()
    assert second.trained_on == 0.7 and second.networks[0]["state"]["bias"].tolist() == [1, 1]
    assert folds([2]).logits[0, 0, 0] == 2 and folds([2], other).logits[0, 0, 0] == 3
    path.write_bytes(b"damaged")
    assert folds([2], other).logits[0, 0, 0] == 4


def test_the_same_seed_gives_the_same_predictions(data, tmp_path):
    def predictions(seed: int) -> np.ndarray:
        names, index = notebook_training(data, tmp_path, 1, seed), data[1]
        fold_of = plan_folds(index, folds=3, repeats=1)
        torch.rand(5)  # whatever else was drawn before
        return cross_validate(index, fold_of, names["fit"], names["table"].predict, all_blocks(2)).logits

    first = predictions(1)
    assert (first == predictions(1)).all()
    assert (first != predictions(2)).any()


# --- the number to quote is made by the lines that the notebook shows


@pytest.fixture(scope="module")
def hard_photos(project, tmp_path_factory) -> Path:
    """Photos that no network can tell apart, as both classes have the same color, and their split."""
    folder, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir()
        for number in range(30):
            photo(generator, (150, 120, 60)).save(folder / name / f"{number:02d}.jpg")
    index, refused = scan_folder(folder)
    index["group"] = index["path"]
    index["split"] = split_index(index)
    (project / "checkpoints" / "edited").mkdir()
    save_index(project / "checkpoints" / "edited" / "split.csv", index, refused)
    return folder


def notebook_cells(project: Path, settings: dict) -> list[tuple[list[str], str]]:
    """Tags and source of train.ipynb's code cells, with other settings, up to the out-of-fold score."""
    cells = []
    for cell in json.loads((project / "train.ipynb").read_text(encoding="utf-8"))["cells"]:
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] == "code":
            cells.append((tags, "".join(cell["source"])))
        if "parameters" in tags:
            cells.append(([], "\n".join(f"{name} = {value!r}" for name, value in settings.items())))
        if "section.update(scores.report_out_of_fold" in "".join(cell["source"]):
            return cells
    raise AssertionError("no cell scores the recipe out of fold")


def test_editing_the_loop_in_the_notebook_moves_the_number_to_quote(project, hard_photos):
    """As a user would: run all cells, edit the one with the loop, run it and those below it again."""
    settings = {"DATA": str(hard_photos), "NAME": "edited", "ARCH": "conv_net", "FINE_TUNE_EPOCHS": 1}
    settings |= {"FOLDS": 3, "REPEATS": 1}
    cells = notebook_cells(project, settings)
    place = next(position for position, (tags, _) in enumerate(cells) if "fit" in tags)
    code = [source for _, source in cells]
    edited = code[place].replace("LEARNING_RATE, steps", "0.0, steps")
    assert edited != code[place]
    script = [
        "from IPython.display import display",  # which notebooks need not import
        *code,
        "print('score', section['oof_macro_f1'])",
        edited,
        *code[place + 1 :],
        "print('score', section['oof_macro_f1'])",
    ]
    (project / "edited.py").write_text("\n".join(script), encoding="utf-8")
    done = subprocess.run([sys.executable, "edited.py"], cwd=project, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    as_committed, without_learning = [line for line in done.stdout.splitlines() if line.startswith("score")]
    assert as_committed != without_learning
