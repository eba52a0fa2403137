"""The whole chain in folds: nothing that is asked about has shaped what answers."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fill_folder

from utils import folds
from utils.compare_models.predictor import unsplit_index
from utils.config import InputError, cpu_info
from utils.datasets import ImageDataset, evaluation_transform
from utils.files import sha256
from utils.model import build_model
from utils.onnx_quant.folds import answer_folds
from utils.onnx_quant.recipes import type_recipes
from utils.report import update_report
from utils.split import save_index

CLASSES = ["cherry pie", "tomato", "사과"]


class Setup:
    """A run of three folds with networks that answer differently, as train.ipynb leaves it."""

    def __init__(self, folder: Path, only_head: bool = False):
        self.data, self.run = fill_folder(folder / "data", dict.fromkeys(CLASSES, 6)), folder / "run"
        self.run.mkdir()
        self.index = unsplit_index(self.data).assign(sha256="")
        save_index(self.run / "split.csv", self.index, self.index.iloc[:0])
        self.models, networks = [], []
        for number in range(3):
            torch.manual_seed(number)
            model, self.preprocessing = build_model("conv_net", 3)
            state = {name: value for name, value in model.state_dict().items() if "classifier" in name or not only_head}
            networks.append({"files": list(self.index["path"][number::3]), "state": state})
            self.models.append(model.eval())
        self.contents = {"arch": "conv_net", "classes": CLASSES, "preprocessing": self.preprocessing, "folds": networks}
        self.write(split_hash=sha256(self.run / "split.csv"))
        update_report(self.run, "quantization", {"recipe": next(iter(type_recipes(cpu_info()))), "sensitivity_db": {}})
        self.image_set = partial(ImageDataset, self.data, classes=CLASSES)

    def write(self, **changes) -> None:
        self.contents |= changes
        torch.save(self.contents, self.run / "folds_conv_net.pth")

    def answer(self, **options) -> dict[str, np.ndarray]:
        return answer_folds(self.run, "conv_net", self.index, self.image_set, calibration=8, **options)


@pytest.fixture
def setup(tmp_path) -> Setup:
    return Setup(tmp_path)


@pytest.mark.parametrize("only_head", [False, True])
def test_every_image_is_answered_by_the_network_that_has_not_seen_it(tmp_path, only_head):
    setup = Setup(tmp_path, only_head)
    logits = setup.answer()
    transform = evaluation_transform(setup.preprocessing)
    for number, model in enumerate(setup.models):
        images = torch.stack([image for image, _ in setup.image_set(setup.index.iloc[number::3], transform=transform)])
        with torch.inference_mode():
            expected = model(images).numpy()
        assert np.abs(logits["onnx"][number::3] - expected).max() < 1e-4
    error = np.abs(logits["int8"] - logits["onnx"])
    assert error.max() > 0 and error.mean() < 0.1 * np.abs(logits["onnx"]).mean()


def test_no_held_out_image_calibrates(setup, monkeypatch):
    seen = []

    class Reader(folds.ImageFolderDataReader):
        def __init__(self, loader):
            seen.append({path.relative_to(setup.data).as_posix() for path in loader.dataset.paths})
            super().__init__(loader)

    monkeypatch.setattr(folds, "ImageFolderDataReader", Reader)
    first = setup.answer()
    assert [len(paths) for paths in seen] == [8, 8, 8]
    assert not any(paths & set(fold["files"]) for paths, fold in zip(seen, setup.contents["folds"], strict=True))
    again = setup.answer()
    assert len(seen) == 3, "the answers were not kept"
    assert all((again[name] == first[name]).all() for name in first)


def test_a_few_folds_leave_the_rest_unanswered(setup):
    logits = setup.answer(limit=1)
    assert (np.isnan(logits["int8"]).any(axis=1) == (np.arange(18) % 3 != 0)).all()


def test_absent_damaged_and_foreign_folds_are_explained(setup):
    path = setup.run / "folds_conv_net.pth"
    setup.write(split_hash="another")
    with pytest.raises(InputError, match="folds_conv_net.pth belongs to another split.csv.*run train.ipynb"):
        setup.answer()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="folds_conv_net.pth cannot be read: it is truncated.*run train.ipynb"):
        setup.answer()
    torch.save({"arch": "conv_net"}, path)
    with pytest.raises(InputError, match="folds_conv_net.pth has no folds.*run train.ipynb"):
        setup.answer()
    path.unlink()
    with pytest.raises(InputError, match="folds_conv_net.pth does not exist: run train.ipynb .* or set FOLDS = 0"):
        setup.answer()


def test_recipe_that_this_cpu_has_not_and_other_networks_are_explained(setup):
    update_report(setup.run, "quantization", {"recipe": "S4S4"})
    with pytest.raises(InputError, match="recipe 'S4S4', which this CPU has not: run onnx_quant.ipynb here"):
        setup.answer()
    fold = setup.contents["folds"][0]
    setup.write(folds=[fold | {"state": fold["state"] | {"blocks.0.weight": torch.zeros(1)}}])
    with pytest.raises(InputError, match=r"of another arch \(blocks.0.weight\): run train.ipynb"):
        setup.answer()
