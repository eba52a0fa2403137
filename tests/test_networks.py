"""Any network of timm, and which of those at hand suits the photos."""

import re
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
from utils.config import InputError
from utils.eda import networks
from utils.features import extract_features
from utils.images import scan_folder
from utils.model import AllBlocks, load_model, replace_classifier
from utils.pretrained import WithLinearHead, build_timm_model, pretrained_classes
from utils.report import chosen_arch, render, update_report
from utils.split import split_index
from utils.train.grad_cam import grad_cam, overlays, to_map


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
        ("nonsense", "'nonsense': timm has no pretrained weights of this name.*: use conv_net"),
        ("resnet18.nonsense", "no pretrained weights of this name.*: use conv_net, .*resnet18"),
        ("coatnet_0_224", "no pretrained weights of this name.*coatnet_0_rw_224"),
        ("efficientnet_lite0@big", "after the @ stands a number of pixels"),
        ("conv_net@128", "conv_net takes photos of 64 pixels and of no other size"),
        ("nest_tiny_jx@100", "nest_tiny_jx could not be had .*leave out the @"),
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
    maps = to_map(values, channels_last=shape == (2, 4, 4, 5), prefix=1)
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


# --- the choice


def table(**rows: tuple[float, float, float, float]) -> pd.DataFrame:
    """Make a table of macro_f1, its difference from the best one's, the upper end of that, and milliseconds."""
    columns = ["macro_f1", "difference", "difference_high", "int8_ms"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).assign(int8_kb=1.0, low=0.8, high=1.0)


def test_fastest_of_those_as_good_as_the_best_is_taken():
    found = table(
        large=(0.990, 0.0, 0.0, 4.0),
        middle=(0.985, -0.005, 0.01, 2.0),
        sure_to_be_worse=(0.984, -0.006, -0.001, 1.0),
        far_behind=(0.950, -0.040, 0.02, 0.5),
    )
    assert networks.choose(found) == "middle"
    assert networks.choose(found.drop("middle")) == "large"
    rows = found.to_dict("index")
    reason = render("choice.txt", arch="middle", best="large", table=rows)
    assert reason.startswith("middle, of 4 the fastest") and "macro-F1 0.985 (0.800 to 1.000)" in reason
    assert reason.endswith("large, the best, has 0.990 and takes 2.0 times as long")
    alone = render("choice.txt", arch="large", best="large", table=rows)
    assert alone.startswith("large, the best of 4: macro-F1 0.990")


def test_a_budget_that_nothing_fits_is_named_with_what_there_is():
    found = table(a=(0.9, 0.0, 0.0, 2.0), b=(0.8, -0.1, 0.1, 1.5))
    assert list(networks.affordable(found, networks.Constraints("", 1.6))) == [False, True]
    with pytest.raises(InputError, match=r"BUDGET_MS 0.1 .*the fastest takes about 1.50 ms and the smallest 1 kB"):
        networks.affordable(found, networks.Constraints("", 0.1))


@pytest.fixture(scope="module")
def split_photos(tmp_path_factory) -> tuple[Path, pd.DataFrame]:
    folder = fill_folder(tmp_path_factory.mktemp("사진"), {"apple": 14, "cherry": 14, "tomato": 8})
    index, _ = scan_folder(folder)
    index["group"] = index["path"]
    return folder, index.assign(split=split_index(index))


def test_photos_of_the_test_part_have_no_say_in_the_choice(split_photos):
    _, index = split_photos
    photos = networks.draw_photos(index, limit=1000)
    assert set(photos["path"]) == set(index.loc[index["split"] != "test", "path"])
    assert len(networks.draw_photos(index, limit=10)) == 10


def test_other_photos_get_a_network_chosen_for_them_and_the_notebooks_after_it_follow(
    split_photos, tmp_path, monkeypatch
):
    folder, index = split_photos
    monkeypatch.setattr(networks, "available", lambda listed: ["conv_net", "efficientnet_lite0@64"])
    compared = networks.choose_network(None, folder, index, tmp_path, networks.Constraints())
    assert compared.arch in compared.table.index
    assert compared.reason.startswith(compared.arch) and "of 2" in compared.reason
    assert set(compared.table.index) == {"conv_net", "efficientnet_lite0@64"}
    assert compared.table["latency_ms"].is_monotonic_increasing and not compared.hint
    monkeypatch.setattr(networks, "score_networks", pytest.fail)  # whoever asks again gets what was found
    cheap = compared.table.loc["conv_net", "int8_ms"] * 1.01
    again = networks.choose_network("auto", folder, index, tmp_path, networks.Constraints("", cheap))
    assert again.arch == "conv_net"
    with pytest.raises(InputError, match="holds no network that EDA.ipynb chose: run EDA.ipynb first"):
        chosen_arch(tmp_path, None)
    update_report(tmp_path, "dataset", {"arch": again.arch, "networks": networks.entries(again.table)})
    assert chosen_arch(tmp_path, None) == chosen_arch(tmp_path, "auto") == "conv_net"
    assert chosen_arch(tmp_path, "resnet18") == "resnet18" and chosen_arch(tmp_path, "") == ""


def test_the_embedded_images_have_the_network_of_the_original_study(split_photos, tmp_path, monkeypatch):
    folder, index = split_photos
    monkeypatch.setattr(networks, "EMBEDDED", folder)
    assert networks.choose_network(None, folder, index, tmp_path, networks.Constraints(None)).arch == "conv_net"


def test_a_hint_is_given_only_beyond_doubt_and_says_what_it_costs():
    labels = np.repeat([0, 1, 2], 40)
    bad, better = labels.copy(), labels.copy()
    bad[::4] = (bad[::4] + 1) % 3
    better[:2] = 1
    photos = pd.DataFrame({"class": labels.astype(str), "group": np.arange(120)})
    cost = {"latency_ms": 1.0, "bytes": 1000}
    slow = {"latency_ms": 12.0, "bytes": 1000}
    found = {"mine": {"predictions": bad.tolist(), **cost}, "theirs": {"predictions": better.tolist(), **slow}}
    costs = networks.estimate_costs(found)
    hint = networks.describe_hint("mine", networks.tabulate(found, photos, costs, "mine"))
    assert re.match(
        r"Try `--arch theirs`: about 23 points better \(1\d to 3\d\) than mine, 12 times slower in this run", hint
    )
    assert not networks.describe_hint("theirs", networks.tabulate(found, photos, costs, "theirs"))


def test_timm_is_not_imported_for_the_default_network_alone():
    code = "import sys; from utils.model import build_model; build_model('conv_net'); print('timm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == "False"
    assert timm.is_model("tf_efficientnet_lite0")
