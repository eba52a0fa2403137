"""Architectures and checkpoint files: what is loaded is what was saved, or a sentence says why not."""

import socket
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from PIL import Image
from sklearn.datasets import load_sample_images

from utils import config
from utils.config import InputError
from utils.datasets import evaluation_transform
from utils.model import ConvNet, build_model, load_checkpoint, load_model, pretrained_classes, save_checkpoint

DETAILS = {
    "arch": "conv_net",
    "classes": ["사과", "cherry", "tomato"],
    "preprocessing": {"image_size": 64},
    "split_hash": "0",
    "metrics": {"macro_f1": 0.5},
}


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    path, model = tmp_path / "fine_tuned_conv_net.pth", ConvNet(3)
    save_checkpoint(path, model, **DETAILS)
    return path, model


def test_conv_net_halves_a_64_pixel_image_three_times():
    model, images = ConvNet(5).eval(), torch.randn(2, 3, 64, 64)
    feature_map = model.forward_features(images)
    assert feature_map.shape == (2, 64, 8, 8)
    assert model.forward_head(feature_map, pre_logits=True).shape == (2, 64 * 8 * 8)
    assert model(images).shape == (2, 5)
    assert model.get_classifier().in_features == 64 * 8 * 8


def test_new_last_layer_on_pretrained_features():
    pretrained, _ = load_model(ROOT / "checkpoints" / "conv_net.pth")
    model, preprocessing = build_model("conv_net", num_classes=3)
    images = torch.randn(2, 3, preprocessing["image_size"], preprocessing["image_size"])
    assert model.eval().cpu()(images).shape == (2, 3)
    assert torch.equal(model.forward_features(images), pretrained.forward_features(images))


def test_checkpoint_comes_back_bit_for_bit(saved):
    path, model = saved
    loaded, details = load_model(path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    assert DETAILS.items() <= details.items()
    assert not loaded.training


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("flipped", "is not the file that was saved"),
        ("cut", "is not the file that was saved"),
        ("cut, no sha256", "truncated or not of this format"),
        ("empty", r"empty \(0 bytes\)"),
        ("pointer", "Git LFS pointer"),
        ("absent", "does not exist"),
        ("foreign", "it is not this project's"),
    ],
)
def test_damaged_checkpoint_is_refused_in_a_sentence(saved, damage, words):
    path, _ = saved
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    contents = {"flipped": flipped, "empty": b"", "pointer": pointer}
    path.write_bytes(contents.get(damage, content[:middle]))
    if damage not in ("flipped", "cut"):
        path.with_name(f"{path.name}.sha256").unlink()
    if damage == "absent":
        path.unlink()
    if damage == "foreign":
        torch.save({"weights": torch.zeros(2)}, path)
    with pytest.raises(InputError, match=words) as error:
        load_checkpoint(path)
    assert path.name in str(error.value) and "run train.ipynb to make it again" in str(error.value)
    assert "weights_only" not in str(error.value) and "\n" not in str(error.value)


def test_empty_sha256_beside_a_checkpoint_is_no_puzzle(saved):
    path, _ = saved
    path.with_name(f"{path.name}.sha256").write_bytes(b"")
    with pytest.raises(InputError, match="run train.ipynb to make it again"):
        load_checkpoint(path)


def test_kill_while_writing_keeps_the_old_file(saved):
    path, model = saved
    script = """
import os, sys
from pathlib import Path
from utils.config import whole_file
with whole_file(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half a checkpoint")
    os._exit(9)  # as if killed: nothing is tidied up
"""
    done = subprocess.run([sys.executable, "-c", script, path], cwd=ROOT)
    assert done.returncode == 9
    assert torch.equal(load_model(path)[0].classifier.weight, model.classifier.weight)


@pytest.mark.parametrize("failing", [1, 2])
def test_interrupted_save_keeps_a_loadable_file(saved, monkeypatch, failing):
    path, model = saved
    replace, calls = config.os.replace, []

    def interrupted(source, target):
        calls.append(target)
        if len(calls) == failing:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(config.os, "replace", interrupted)
    other = ConvNet(3)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, other, **DETAILS)
    weight = load_model(path)[0].classifier.weight
    assert torch.equal(weight, model.classifier.weight) or torch.equal(weight, other.classifier.weight)
    assert not list(path.parent.glob(".writing-*"))


def test_unknown_architecture_is_named_with_the_known_ones():
    with pytest.raises(InputError, match="ARCH 'nonsense' is unknown: use conv_net, efficientnet_lite0, or"):
        build_model("nonsense")


def test_efficientnet_lite0_knows_a_daisy_without_a_network(monkeypatch):
    def no_network(*_):
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    model, preprocessing = build_model("efficientnet_lite0")
    flower = load_sample_images().images[1]
    with torch.inference_mode():
        logits = model.cpu().eval()(evaluation_transform(preprocessing)(Image.fromarray(flower))[None])
    assert pretrained_classes("efficientnet_lite0")[logits.argmax()] == "daisy"
