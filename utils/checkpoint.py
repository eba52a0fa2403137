"""Networks on disk, and what those of folds predict: what is loaded is what was saved, or a sentence says why not."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from utils.config import InputError, listing, relative, require
from utils.files import likely_cause, remembered_arrays, sha256, whole_file

FORMAT_VERSION = 1
DETAILS = {"arch", "classes", "preprocessing"}  # what every file says


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
    """Write the networks of `cross_validate`, and the fingerprint and `details` of the shipped one."""
    with whole_file(path) as temporary:
        torch.save({"format_version": FORMAT_VERSION, "folds": networks, "shipped": shipped, **details}, temporary)


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint, trusting nothing: absent, cut, altered and foreign files raise an InputError that says so."""
    again, sum_file = how_to_recreate(path), Path(f"{path}.sha256")
    if path.exists() and sum_file.exists():
        saved = sum_file.read_text(encoding="utf-8", errors="replace").split()[:1]
        differs = f"is not the file that was saved (its sha256 differs from {sum_file.name}; {likely_cause(path)})"
        require(saved == [sha256(path)], f"{relative(path)} {differs}: {again}")
    return _load(path, {"state_dict"}, again)


def load_folds(path: Path, split_hash: str, shipped: str) -> dict:
    """Read the networks that train.ipynb made in cross-validation, with classes, preprocessing and arch.

    ``folds`` lists, for each, ``files`` (the images that it has not seen) and ``state``: loaded into the network of the
    shipped checkpoint with ``strict=False``, it makes the fold's. Raises InputError when the file is no good, or of
    another split (sha256) or training (fingerprint of the `shipped` network) than these.
    """
    again = "run train.ipynb to make it again, or set FOLD_NETWORKS = 0 to do without"
    folds = _load(path, {"folds", "split_hash"}, again)
    other = f"{relative(path)} belongs to another"
    require(folds["split_hash"] == split_hash, f"{other} split.csv than the one beside it: {again}")
    require(folds.get("shipped") == shipped, f"{other} training than the network beside it: {again}")
    return folds


def _load(path: Path, needed: set[str], again: str) -> dict:
    require(path.exists(), f"{relative(path)} does not exist: {again}")
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises pickle, zip, EOF and runtime errors alike
        raise InputError(f"{relative(path)} cannot be read: {likely_cause(path)}. {again}") from error
    lacking = sorted((DETAILS | needed) - set(content if isinstance(content, dict) else ()))
    require(not lacking, f"{relative(path)} has no {listing(lacking)}, so it is not this project's: {again}")
    return content


def how_to_recreate(path: Path) -> str:
    """Name the next step when a checkpoint is no good."""
    if path.name == "conv_net.pth":
        return "restore it with `git checkout checkpoints/conv_net.pth checkpoints/conv_net.pth.sha256`"
    return "run train.ipynb to make it again"


def keep_logits(
    path: Path, images: pd.Series, compute: Callable[[], dict], parts: Sequence[object] = (), **made_from: str
) -> dict[str, np.ndarray]:
    """Return each model's out-of-fold logits (N, C) for `images`, paths (N,), computed anew if anything has changed.

    The file remembers them by the `parts` that they depend on, as `files.remembered_arrays` does, and tells whoever
    reads it what they were `made_from`.
    """
    about = {"images": images.to_numpy(str), "made_from": np.array(json.dumps(made_from))}
    parts = [*parts, made_from, images.tolist()]
    found = remembered_arrays(path, parts, lambda: compute() | about)
    return {name: values for name, values in found.items() if name not in about}


def load_logits(path: Path, images: pd.Series, **made_from: str) -> dict[str, np.ndarray]:
    """Read the out-of-fold logits (N, C) of each model for `images`, paths (N,).

    Raises InputError when the file is absent, damaged, or was made from something else than it would be now.
    """
    again = "run onnx_quant.ipynb to make it again"
    if not path.exists():
        raise InputError(f"{relative(path)} does not exist: {again}")
    try:
        with np.load(path) as file:
            logits = {name: file[name] for name in file.files}
        known, before = logits.pop("images").tolist(), json.loads(str(logits.pop("made_from")))
        del logits["key"]
    except Exception:  # numpy raises zip, EOF and value errors alike
        raise InputError(f"{relative(path)} cannot be read: {likely_cause(path)}. {again}") from None
    changed = [name for name, value in made_from.items() if before.get(name) != value]
    if changed or known != list(images):
        raise InputError(f"{relative(path)} was made from another {' and '.join(changed) or 'set of images'}: {again}")
    return logits
