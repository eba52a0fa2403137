"""A network whose last layer sees every block: the same in any kind of network, thread, copy, file and graph."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
import torch
from nets import all_blocks, to_onnx
from torch import nn

from utils.checkpoint import save_checkpoint
from utils.model import AllBlocks, build_model, classifier_names, load_model, pool, replace_classifier
from utils.onnx_quant.graph import prepare
from utils.pretrained import build_timm_model
from utils.session import run_model

LITE0_64 = [16, 24, 24, *[4 * 40] * 2, *[4 * 80] * 3, *[4 * 112] * 3, *[4 * 192] * 4, 4 * 320, 1280]
NETWORKS = {  # untrained ones of each layout, with the number of features of each block
    "test_resnet@64": [32, 4 * 48, 4 * 192, 4 * 96, 96],  # maps of 16, 8, 4 and 2 pixels a side
    "efficientnet_lite0@64": LITE0_64,
    "test_convnext@64": [24, 4 * 32, 4 * 48, 4 * 64, 64],
    "swin_tiny_patch4_window7_224@56": [96, 4 * 192, 4 * 384, 4 * 768, 768],  # channels last
    "test_vit@96": [64] * 7,  # tokens
    "deit_tiny_distilled_patch16_224@32": [192] * 13,  # tokens, and a linear head of our own
    "sequencer2d_s": [192, 384, 384, 384, 384],  # channels last, and a linear head of our own
}


def build(arch: str) -> tuple[nn.Module, torch.Tensor]:
    """Build a network of timm with random weights, and two images for it."""
    torch.manual_seed(0)
    network, preprocessing = build_timm_model(arch, pretrained=False)
    return network.eval(), torch.rand(2, 3, preprocessing["image_size"], preprocessing["image_size"])


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(24, 3, 64, 64, generator=torch.Generator().manual_seed(0))


# --- blocks


@torch.inference_mode()
@pytest.mark.parametrize("arch", NETWORKS)
def test_every_block_gives_its_features_and_the_pretrained_answers_stay(arch):
    network, pictures = build(arch)
    before = network(pictures)
    model = AllBlocks(network, pictures.shape[-1]).eval()
    assert model.sizes == NETWORKS[arch]
    features = model.forward_features(pictures)
    assert features.shape == (2, sum(model.sizes)) == (2, model.get_classifier().in_features)
    np.testing.assert_allclose(model(pictures), before, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("arch", ["test_resnet@64", "swin_tiny_patch4_window7_224@56", "test_vit@96"])
def test_features_stand_in_the_order_in_which_blocks_run(arch):
    """What changes a block changes the features of this block and of those behind it, and no others."""
    network, pictures = build(arch)
    model = AllBlocks(network, pictures.shape[-1]).eval()
    before = model.forward_features(pictures)
    for number, name in enumerate(model.blocks):
        changed = copy.deepcopy(model)
        changed.body.get_submodule(name).register_forward_hook(lambda block, inputs, output: 2 * output, prepend=True)
        moved = (changed.forward_features(pictures) != before).any(dim=0).split(model.sizes)
        assert [bool(part.any()) for part in moved] == [position >= number for position in range(len(moved))]


def test_the_pretrained_conv_net_has_three_blocks_and_lite0_sixteen():
    assert build_model("conv_net")[0].sizes == [16, 32, 4 * 64, 4096]
    assert build_model("efficientnet_lite0@64")[0].sizes == LITE0_64


def test_small_maps_are_pooled_by_quarters_and_others_as_a_whole():
    maps = torch.zeros(1, 2, 6, 6)
    maps[0, 1, :3, 3:] = 1  # up, right
    assert pool(maps).tolist() == [[0, 0, 0, 0, 0, 1, 0, 0]]
    assert pool(maps.movedim(1, 3), channels_last=True).tolist() == pool(maps).tolist()
    assert pool(maps.repeat(1, 1, 2, 2)).tolist() == [[0, 0.25]], "12 pixels a side are many"
    assert pool(maps[..., :1, 3:4]).tolist() == [[0, 1]], "one pixel has no quarters"
    assert pool(torch.ones(1, 5, 2)).tolist() == [[1, 1]], "tokens"


# --- threads, copies, files


@torch.inference_mode()
def test_threads_that_share_a_network_get_the_rows_of_one_alone(images):
    model = all_blocks()
    batches = images.split(1)
    expected = [model.forward_features(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool_of_threads:
        for _ in range(5):
            found = list(pool_of_threads.map(torch.inference_mode()(model.forward_features), batches))
            assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@torch.inference_mode()
def test_a_copy_has_blocks_of_its_own(images):
    model = all_blocks()
    before = model(images)
    copied = copy.deepcopy(model)
    assert torch.equal(copied(images), before)
    copied.body.features[0][0].weight.mul_(2)
    assert torch.equal(model(images), before) and not torch.equal(copied(images), before)


@torch.inference_mode()
@pytest.mark.parametrize("arch", ["conv_net", "efficientnet_lite0@64", "test_vit@96", "dpn68@64"])
def test_a_checkpoint_comes_back_with_all_blocks(arch, tmp_path):
    if arch == "conv_net":
        model, pictures = all_blocks(), torch.rand(2, 3, 64, 64)
    else:
        network, pictures = build(arch)
        model = AllBlocks(network, pictures.shape[-1])
        replace_classifier(model, 3)
    details = {"arch": arch, "classes": list("abc"), "preprocessing": {"image_size": pictures.shape[-1]}}
    save_checkpoint(tmp_path / "net.pth", model, **details, features="all blocks")
    loaded, saved = load_model(tmp_path / "net.pth")
    assert saved["features"] == "all blocks" and loaded.sizes == model.sizes
    assert classifier_names(loaded) == ["classifier.weight", "classifier.bias"]
    np.testing.assert_allclose(loaded(pictures), model.eval()(pictures), atol=1e-5)


# --- the graph


@torch.inference_mode()
@pytest.mark.parametrize("arch", ["conv_net", "efficientnet_lite0@64", "efficientnet_lite0@224", "test_vit@96"])
def test_the_exported_and_the_prepared_graph_give_the_same_logits(arch, tmp_path):
    if arch == "conv_net":
        model, pictures = all_blocks(), torch.rand(2, 3, 64, 64)
    else:
        network, pictures = build(arch)
        model = AllBlocks(network, pictures.shape[-1])
        replace_classifier(model, 3)
    model.get_classifier().weight *= 20
    preprocessing = {"image_size": pictures.shape[-1], "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3}
    path = to_onnx(model.eval(), tmp_path / "net.onnx", preprocessing=preprocessing)
    prepare(path, tmp_path / "prepared.onnx")
    pictures = torch.cat([pictures, 1 - pictures, pictures / 2])
    expected = model(pictures).numpy()
    assert np.ptp(expected, axis=0).max() > 0.1, "the images are answered alike"
    for file in (path, tmp_path / "prepared.onnx"):
        np.testing.assert_allclose(run_model(file, pictures.numpy()), expected, rtol=1e-4, atol=1e-4)
    operators = [node.op_type for node in onnx.load(tmp_path / "prepared.onnx").graph.node]
    assert "Concat" not in operators or arch == "test_vit@96", "a class token is joined to the others"
    assert operators.count("Gemm") >= len(model.sizes) and operators[-1] == "Sum"
    if arch.startswith("efficientnet"):
        assert "ReduceMean" not in operators
