"""Checkpoint files: what is loaded is what was saved, or a sentence says why not."""

from pathlib import Path

import torch
from torch import nn

from utils.config import InputError, relative
from utils.files import likely_cause, sha256, whole_file

FORMAT_VERSION = 1


def save_checkpoint(path: Path, model: nn.Module, **details) -> None:
    """Write weights and `details` (arch, classes, preprocessing, split_hash, metrics), whole or not at all.

    The file's sha256 goes beside it, in the form that ``sha256sum --check`` reads.
    """
    state_dict = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    sum_file = Path(f"{path}.sha256")
    with whole_file(path) as temporary:
        torch.save({"format_version": FORMAT_VERSION, "state_dict": state_dict, **details}, temporary)
        digest = sha256(temporary)
        # a kill from here on leaves a checkpoint without its sum, never one that its sum contradicts
        sum_file.unlink(missing_ok=True)
    with whole_file(sum_file) as temporary:
        temporary.write_text(f"{digest}  {path.name}\n", encoding="utf-8")


def save_folds(path: Path, networks: list[dict], shipped: str, **details) -> None:
    """Write the networks of `cross_validate`, the shipped one's fingerprint, and `details`, whole or not at all.

    The details are those of the shipped checkpoint: arch, classes, preprocessing, split_hash.
    """
    with whole_file(path) as temporary:
        torch.save({"format_version": FORMAT_VERSION, "folds": networks, "shipped": shipped, **details}, temporary)


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint, trusting nothing: absent, cut, altered and foreign files raise an InputError that says so."""
    if not path.exists():
        raise InputError(f"{relative(path)} does not exist: {how_to_recreate(path)}")
    sum_file = Path(f"{path}.sha256")
    if sum_file.exists() and sum_file.read_text(encoding="utf-8", errors="replace").split()[:1] != [sha256(path)]:
        raise InputError(
            f"{relative(path)} is not the file that was saved (its sha256 differs from {sum_file.name}; "
            f"{likely_cause(path)}): {how_to_recreate(path)}"
        )
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises pickle, zip, EOF and runtime errors alike
        raise InputError(f"{relative(path)} cannot be read: {likely_cause(path)}. {how_to_recreate(path)}") from error
    if not isinstance(checkpoint, dict) or {"state_dict", "arch", "classes", "preprocessing"} - set(checkpoint):
        raise InputError(
            f"{relative(path)} has no arch, classes or preprocessing, so it is not this project's: "
            f"{how_to_recreate(path)}"
        )
    return checkpoint


def how_to_recreate(path: Path) -> str:
    """Name the next step when a checkpoint is no good."""
    if path.name == "conv_net.pth":
        return "restore it with `git checkout checkpoints/conv_net.pth checkpoints/conv_net.pth.sha256`"
    return "run train.ipynb to make it again"


def load_folds(path: Path, split_hash: str, shipped: str) -> dict:
    """Read the networks that train.ipynb made in cross-validation, with classes, preprocessing and arch.

    ``folds`` lists, for each, ``files`` (the images that it has not seen) and ``state``: loaded into the network of the
    shipped checkpoint with ``strict=False``, it makes the fold's. Raises InputError when the file is absent, damaged,
    of another split than the one with this sha256, or of another training than that of the network whose fingerprint is
    `shipped`.
    """
    again = "run train.ipynb to make it again, or set FOLD_NETWORKS = 0 to do without"
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
    if folds.get("shipped") != shipped:
        raise InputError(f"{relative(path)} belongs to another training than the network beside it: {again}")
    return folds
