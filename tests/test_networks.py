"""Any network of timm, and which of those at hand suits the photos."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from conftest import ROOT, fill_folder
from torch import nn
from torch.utils.data import DataLoader

from utils.checkpoint import save_checkpoint
from utils.config import CHECKPOINTS, InputError
from utils.eda import network_choice, networks
from utils.features import extract_features
from utils.images import scan_folder
from utils.model import AllBlocks, load_model, replace_classifier
from utils.pretrained import WithLinearHead, build_timm_model, pretrained_classes
from utils.report import chosen_arch, update_report
from utils.split import split_index
from utils.train.grad_cam import check_maps, grad_cam, overlays, to_map


def build(arch: str) -> tuple[torch.nn.Module, dict]:
    """Build a network with random weights."""
    torch.manual_seed(0)
    return build_timm_model(arch, pretrained=False)


# --- heads and sizes


@pytest.mark.parametrize("arch", ["test_vit@96", "test_resnet@64", "efficientnet_lite0@64", "test_convnext@64"])
def test_a_linear_head_is_kept_and_photos_have_the_size_asked_for(arch):
    model, preprocessing = build(arch)
    size = int(arch.partition("@")[2])
    images = torch.rand(2, 3, size, size)
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    assert not isinstance(model, WithLinearHead) and preprocessing["image_size"] == size
    assert torch.allclose(model.get_classifier()(features), model(images), atol=1e-4)


@pytest.mark.parametrize(
    "arch", ["deit_tiny_distilled_patch16_224@32", "dpn68@64", "repvit_m1@64", "vit_small_patch14_dinov2@42"]
)
def test_two_heads_a_convolution_other_layers_or_none_become_one_linear_layer(arch, tmp_path):
    model, preprocessing = build(arch)
    images = torch.rand(2, 3, preprocessing["image_size"], preprocessing["image_size"])
    features = extract_features(model, DataLoader([(image, 0) for image in images], batch_size=2))
    assert np.allclose(model(images).detach(), features, atol=1e-4), "until it is replaced, it passes features on"
    replace_classifier(model, 3)
    details = {"arch": arch, "classes": list("abc"), "preprocessing": preprocessing}
    save_checkpoint(tmp_path / "net.pth", model, **details)
    loaded, _ = load_model(tmp_path / "net.pth")
    assert torch.allclose(loaded(images), model.eval()(images), atol=1e-4)


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("nonsense", "'nonsense' is unknown: use conv_net"),
        ("resnet18.nonsense", "no such weights of resnet18: there are resnet18.a1_in1k"),
        ("coatnet_0_224", "has no pretrained weights for it.*: use coatnet_"),
        ("efficientnet_lite0@big", "after the @ stands a number of pixels"),
        ("conv_net@128", "conv_net takes photos of 64 pixels and of no other size"),
        ("nest_tiny_jx@100", "nest_tiny_jx does not take 100 pixels .*leave out the @"),
    ],
)
def test_a_network_that_cannot_be_had_is_refused_in_a_sentence(arch, words):
    with pytest.raises(InputError, match=words):
        build_timm_model(arch)


def test_a_size_that_the_network_cannot_take_is_refused_in_a_sentence():
    with pytest.raises(
        InputError, match=r"'test_vit@97' cannot be used for photos of 97 × 97 pixels .*divisible.*another number"
    ):
        build("test_vit@97")


def test_answers_have_names_whatever_a_network_was_pretrained_on():
    assert pretrained_classes("resnet18", 1000)[207] == "golden retriever"
    assert len(pretrained_classes("resnetv2_50x1_bit.goog_in21k", 21843)) == 21843
    assert pretrained_classes("dpn68", 3) == ["output 0", "output 1", "output 2"]


# --- Grad-CAM


@pytest.mark.parametrize("shape", [(2, 5, 4, 4), (2, 4, 4, 5), (2, 16, 5), (2, 17, 5)])
def test_features_of_any_layout_become_maps_with_every_place_where_it_was(shape):
    values = torch.zeros(shape)
    if shape == (2, 5, 4, 4):
        values[0, 3, 1, 2] = 1
    elif len(shape) == 4:
        values[0, 1, 2, 3] = 1
    else:
        values[0, shape[1] - 16 + 1 * 4 + 2, 3] = 1
    maps = to_map(values, channels=5, prefix=1)
    assert maps.shape == (2, 5, 4, 4)
    assert maps[0, 3, 1, 2] == 1 and maps.sum() == 1


class Bright(nn.Module):
    """A network whose answer is how bright the picture is, with features of 8 × 8 places in one of three layouts."""

    num_features = 4

    def __init__(self, layout: str):
        super().__init__()
        self.output_fmt = "NHWC" if layout == "channels last" else "NCHW"
        self.layout, self.num_prefix_tokens = layout, int(layout == "tokens")
        self.patches, self.classifier = nn.Conv2d(3, 4, kernel_size=4, stride=4), nn.Linear(4, 2)
        for parameter in self.parameters():
            nn.init.constant_(parameter, 1.0)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        features = self.patches(images)
        if self.layout == "channels last":
            return features.movedim(1, 3)
        if self.layout == "tokens":
            return torch.cat([torch.zeros(len(images), 1, 4), features.flatten(2).movedim(1, 2)], dim=1)
        return features

    def forward_head(self, features: torch.Tensor, pre_logits: bool) -> torch.Tensor:
        places = {"channels first": (2, 3), "channels last": (1, 2), "tokens": 1}[self.layout]
        return features.mean(dim=places)

    def get_classifier(self) -> nn.Linear:
        return self.classifier


@pytest.mark.parametrize("layout", ["channels first", "channels last", "tokens"])
def test_map_is_hot_where_the_answer_comes_from(layout):
    images = torch.zeros(1, 3, 32, 32)
    images[:, :, 20:28, 4:12] = 1
    heat = grad_cam(AllBlocks(Bright(layout), 32), images, [1])
    assert heat.shape == (1, 32, 32)
    assert heat[0, 20:28, 4:12].mean() > 0.6 > 0.01 > heat[0, :16].mean()


@pytest.mark.parametrize("arch", ["test_vit@128", "test_vit2@128", "test_resnet@96", "swin_tiny_patch4_window7_224@56"])
def test_networks_that_answer_by_one_token_or_by_the_mean_have_maps(arch):
    model, preprocessing = build(arch)
    size = preprocessing["image_size"]
    heat = grad_cam(AllBlocks(model, size), torch.rand(8, 3, size, size), range(8))
    assert heat.shape == (8, size, size) and np.isfinite(heat).all()
    assert heat.std(axis=(1, 2)).max() > 0.01, "all maps are flat"


def test_a_network_without_a_map_says_so_and_breaks_nothing(capsys):
    model, preprocessing = build("pit_ti_224")
    model = AllBlocks(model, 224)
    images = torch.rand(2, 3, 224, 224)
    heat = grad_cam(model, images, [0, 1])
    assert heat.shape == (2, 224, 224) and np.isnan(heat).all()
    assert "no map for this architecture" in capsys.readouterr().out
    plain = overlays([(image, 0) for image in images], heat, {"mean": [0.0] * 3, "std": [1.0] * 3})
    assert np.array_equal(plain[1], np.uint8(255 * images[1].permute(1, 2, 0).numpy()))
    assert check_maps(model, images, heat, heat, [0, 1]).isna().all(axis=None)


# --- the choice


def table(**networks: tuple[float, float, float, float]) -> pd.DataFrame:
    """Make a table of macro_f1, beyond the best, at best, and milliseconds."""
    rows = pd.DataFrame.from_dict(networks, orient="index", columns=["macro_f1", "beyond", "at_best", "int8_ms"])
    return rows.assign(within=True, int8_bytes=1000.0)


def test_fastest_of_those_as_good_as_the_best_is_taken():
    found = table(
        large=(0.990, 0.0, 0.0, 4.0),
        middle=(0.985, -0.005, 0.01, 2.0),
        sure_to_be_worse=(0.984, -0.006, -0.001, 1.0),
        far_behind=(0.950, -0.040, 0.02, 0.5),
    )
    assert network_choice.choose(found) == "middle"
    assert network_choice.choose(found.assign(within=[True, False, True, True])) == "large"


def test_a_budget_that_nothing_fits_is_named_with_what_there_is():
    found = table(a=(0.9, 0.0, 0.0, 2.0), b=(0.8, -0.1, 0.1, 1.5))
    assert list(network_choice.within_budget(found, network_choice.Wishes("", 1.6))) == [False, True]
    with pytest.raises(InputError, match=r"BUDGET_MS 0.1 .*the fastest takes about 1.50 ms and the smallest 1 kB"):
        network_choice.within_budget(found, network_choice.Wishes("", 0.1))


@pytest.fixture(scope="module")
def split_photos(tmp_path_factory) -> tuple[Path, pd.DataFrame]:
    folder = fill_folder(tmp_path_factory.mktemp("사진"), {"apple": 14, "cherry": 14, "tomato": 8})
    index, _ = scan_folder(folder)
    index["group"] = index["path"]
    return folder, index.assign(split=split_index(index))


def test_photos_of_the_test_part_have_no_say_in_the_choice(split_photos):
    folder, index = split_photos
    photos = networks.choose_photos(folder, index, limit=1000)
    assert set(photos.index["path"]) == set(index.loc[index["split"] != "test", "path"])
    assert len(networks.choose_photos(folder, index, limit=10).index) == 10


def test_choice_is_remembered_and_the_notebooks_after_it_follow(split_photos, tmp_path, monkeypatch):
    folder, index = split_photos
    monkeypatch.setattr(network_choice, "at_hand", lambda listed: ["conv_net", "efficientnet_lite0@64", *listed])
    compared = network_choice.compare("auto", folder, index, tmp_path, network_choice.Wishes())
    assert compared.arch in compared.table.index and f"**{compared.arch}**" in compared.sentence
    assert set(compared.table.index) == {"conv_net", "efficientnet_lite0@64"}
    assert compared.table["latency_ms"].is_monotonic_increasing and not compared.hint
    monkeypatch.setattr(network_choice, "score_networks", pytest.fail)  # whoever asks again gets what was found
    cheap = compared.table.loc["conv_net", "int8_ms"] * 1.01
    again = network_choice.compare("auto", folder, index, tmp_path, network_choice.Wishes("", cheap))
    assert again.arch == "conv_net"
    with pytest.raises(InputError, match="holds no network that EDA.ipynb chose: run it with ARCH = .auto. first"):
        chosen_arch(tmp_path, "auto")
    update_report(tmp_path, "dataset", {"arch": again.arch, "networks": network_choice.entries(again.table)})
    assert chosen_arch(tmp_path, "auto") == "conv_net" and chosen_arch(tmp_path, "resnet18") == "resnet18"


def test_a_hint_is_given_only_beyond_doubt_and_with_the_command():
    labels = np.repeat([0, 1, 2], 40)
    bad, better = labels.copy(), labels.copy()
    bad[::4] = (bad[::4] + 1) % 3
    better[:2] = 1
    photos = networks.Photos(Path(), pd.DataFrame({"class": labels.astype(str)}), np.arange(120))
    cost = {"latency_ms": 1.0, "bytes": 1000}
    found = {"mine": {"answers": bad.tolist(), **cost}, "theirs": {"answers": better.tolist(), **cost}}
    for arch, expected in (("mine", True), ("theirs", False)):
        shown = networks.tabulate(found, photos).join(networks.pair(found, photos, arch))
        hint = network_choice.describe_hint(arch, shown, "python run.py")
        assert bool(hint) == expected
    shown = networks.tabulate(found, photos).join(networks.pair(found, photos, "mine"))
    call = network_choice.command(Path("/somewhere/my photos"), CHECKPOINTS / "mine")
    assert network_choice.describe_hint("mine", shown, call).endswith(
        "Try `python run.py --data '/somewhere/my photos' --name mine --arch theirs`"
    )
    assert network_choice.command(ROOT / "data" / "train", CHECKPOINTS) == "python run.py"


def test_choosing_among_equals_flatters_and_a_clear_choice_does_not():
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 60)
    photos = networks.Photos(Path(), pd.DataFrame({"class": labels.astype(str)}), np.arange(120))

    def answers(errors: float) -> list[int]:
        return np.where(generator.random(120) < errors, 1 - labels, labels).tolist()

    equals = {f"net{number}": {"answers": answers(0.3), "latency_ms": 1.0, "bytes": 1} for number in range(8)}
    clear = equals | {"best": {"answers": answers(0.02), "latency_ms": 1.0, "bytes": 1}}
    flattery = [
        network_choice.optimism(found, photos, networks.tabulate(found, photos).assign(within=True))
        for found in (equals, clear)
    ]
    assert flattery[0] > 0.02
    assert abs(flattery[1]) < 0.005


def test_timm_is_not_imported_for_the_default_network_alone():
    code = "import sys; from utils.model import build_model; build_model('conv_net'); print('timm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == "False"
    assert timm.is_model("tf_efficientnet_lite0")
