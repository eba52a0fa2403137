"""The whole chain in folds: made by the notebook's own functions, asked about what its networks have not seen."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fill_folder
from nets import CLASSES, PLAIN, PREPROCESSING, to_onnx

from bench.notebooks import define
from utils.config import InputError
from utils.datasets import ImageDataset, evaluation_transform
from utils.features import fingerprint
from utils.images import scan_folder
from utils.model import ConvNet
from utils.onnx_quant.folds import Pipeline, agreement, load_networks, predict_folds
from utils.onnx_quant.graph import prepare
from utils.onnx_quant.ranges import CalibrationSet

DETAILS = {"preprocessing": PREPROCESSING}
RECIPE = PLAIN._replace(correct_biases=True)


def random_network(seed: int) -> ConvNet:
    torch.manual_seed(seed)
    return ConvNet(3).eval()


class Folds:
    """Three folds of a network that no checkpoint holds; they answer differently."""

    def __init__(self, folder: Path, only_head: bool = False):
        self.data = fill_folder(folder / "내 사진", dict.fromkeys(CLASSES, 6))
        self.index = scan_folder(self.data)[0]
        transform = evaluation_transform(PREPROCESSING)
        self.image_set = partial(ImageDataset, self.data, classes=CLASSES, transform=transform)
        self.shipped, self.models, self.networks = random_network(9), [], []
        self.float_path, self.prepared_path = to_onnx(self.shipped, folder / "shipped.onnx"), folder / "prepared.onnx"
        prepare(self.float_path, self.prepared_path)
        for number in range(3):
            state = random_network(number).state_dict()
            if only_head:
                state = {name: value for name, value in state.items() if name.startswith("classifier")}
            model = random_network(9)
            model.load_state_dict(state, strict=False)
            self.models.append(model)
            self.networks.append({"files": list(self.index["path"][number::3]), "state": state})

    @torch.inference_mode()
    def expected(self, number: int) -> np.ndarray:
        """What torch answers to the images that a fold holds out."""
        images = [image for image, _ in self.image_set(self.index.iloc[number::3])]
        return self.models[number](torch.stack(images)).numpy()

    def answer(self, quantize=None, export=None, networks=None) -> dict[str, np.ndarray]:
        quantize = quantize or define("onnx_quant", "quantize")[0]
        images = CalibrationSet(self.prepared_path, self.image_set, self.index)
        pipeline = Pipeline(self.shipped, self.float_path, images, RECIPE, export or define_export(), quantize)
        return predict_folds(self.networks if networks is None else networks, pipeline, calibration=8)


def define_export(edits: dict[str, str] | None = None, **given):
    return define("onnx_quant", "export", edits=edits, details=DETAILS, **given)[0]


class Doubled(torch.nn.Module):
    """A network whose logits are twice as large."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 2 * self.model(images)


@pytest.fixture(scope="module")
def heads(tmp_path_factory) -> Folds:
    return Folds(tmp_path_factory.mktemp("heads"), only_head=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Folds:
    return Folds(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(("kind", "count", "exports"), [("heads", 3, 0), ("whole", 2, 0)])
def test_every_image_is_answered_by_the_network_that_has_not_seen_it(request, kind, count, exports):
    """What a fold's state lacks is the shipped network's, whose file is used again with the weights of the fold."""
    folds, exported = request.getfixturevalue(kind), []
    before, content = folds.shipped.classifier.weight.clone(), folds.float_path.read_bytes()

    def export(model, target) -> None:
        exported.append(model)
        define_export()(model, target)

    logits = folds.answer(export=export, networks=folds.networks[:count])
    assert len(exported) == exports
    for number in range(count):
        np.testing.assert_allclose(logits["onnx"][number::3], folds.expected(number), atol=1e-4)
    error = np.abs(logits["int8"] - logits["onnx"])
    assert np.nanmax(error) > 0 and np.nanmean(error) < 0.1 * np.nanmean(np.abs(logits["onnx"]))
    assert (folds.shipped.classifier.weight == before).all() and folds.float_path.read_bytes() == content


@pytest.mark.parametrize("option", ["per_channel", "reduce_range"])
def test_an_option_edited_in_the_notebook_moves_the_answers_out_of_fold(heads, option):
    (edited,) = define("onnx_quant", "quantize", edits={f"{option}=recipe.{option}": f"{option}=False"})
    before, after = heads.answer(), heads.answer(quantize=edited)
    assert (before["onnx"] == after["onnx"]).all()
    assert (before["int8"] != after["int8"]).mean() > 0.5


def test_an_export_edited_in_the_notebook_moves_the_answers_out_of_fold(whole, tmp_path, monkeypatch):
    """It has written the shipped file, too."""
    export = define_export({"model.eval()": "doubled(model).eval()"}, doubled=Doubled)
    monkeypatch.setattr(whole, "float_path", tmp_path / "doubled.onnx")
    export(whole.shipped, whole.float_path)
    logits = whole.answer(networks=whole.networks[:1], export=export)
    np.testing.assert_allclose(logits["onnx"][::3], 2 * whole.expected(0), atol=1e-4)


def test_no_held_out_image_calibrates(heads):
    seen, own = [], define("onnx_quant", "quantize")[0]

    def quantize(prepared_path, calibration_set, target, recipe) -> None:
        seen.append(set(calibration_set.index["path"]))
        own(prepared_path, calibration_set, target, recipe)

    heads.answer(quantize=quantize)
    assert [len(paths) for paths in seen] == [8, 8, 8]
    held_out = [set(network["files"]) for network in heads.networks]
    assert sorted([not paths & files for files in held_out] for paths in seen) == np.eye(3, dtype=bool)[::-1].tolist()


def test_ranges_of_the_shipped_network_are_those_of_a_fold_that_differs_in_its_last_layer(heads):
    (quantize,) = define("onnx_quant", "quantize")

    def measure_again(prepared_path, shown, target, recipe) -> None:
        quantize(prepared_path, CalibrationSet(prepared_path, shown.image_set, shown.index), target, recipe)

    assert (heads.answer()["int8"] == heads.answer(quantize=measure_again)["int8"]).all()


def test_a_few_networks_leave_the_rest_unanswered(heads):
    logits = heads.answer(networks=heads.networks[:1])
    assert (np.isnan(logits["int8"]).any(axis=1) == (np.arange(18) % 3 != 0)).all()
    assert agreement(logits)["images"] == 6 and agreement(logits)["agreement"] > 0.5
    assert heads.answer(networks=[]) == {} and agreement({}) == {"images": 0, "agreement": None}


def test_networks_of_another_arch_are_explained(heads):
    foreign = heads.networks[0] | {"state": {"blocks.0.weight": torch.zeros(1)}}
    with pytest.raises(InputError, match=r"of another arch \(blocks.0.weight\): run train.ipynb"):
        heads.answer(networks=[foreign])


def test_absent_damaged_and_foreign_files_are_explained(heads, tmp_path):
    path = tmp_path / "folds_conv_net.pth"
    contents = {
        "arch": "conv_net",
        "classes": CLASSES,
        "preprocessing": PREPROCESSING,
        "split_hash": "s",
        "shipped": fingerprint(heads.shipped, whole=True),
    }

    def load(split_hash: str = "s") -> list:
        return load_networks(path, split_hash, heads.shipped)

    assert load_networks(path, "s", heads.shipped, limit=0) == []
    with pytest.raises(InputError, match="folds_conv_net.pth does not exist: run train.ipynb .* or set FOLD.* = 0"):
        load()
    torch.save({"folds": heads.networks, **contents}, path)
    assert load()[0]["files"] == heads.networks[0]["files"]
    assert len(load_networks(path, "s", heads.shipped, limit=2)) == 2
    with pytest.raises(InputError, match="folds_conv_net.pth belongs to another split.csv.*run train.ipynb"):
        load("another")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="folds_conv_net.pth cannot be read: it is truncated.*run train.ipynb"):
        load()
    torch.save(contents, path)
    with pytest.raises(InputError, match="folds_conv_net.pth has no folds.*run train.ipynb"):
        load()
