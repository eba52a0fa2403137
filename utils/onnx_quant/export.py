"""Export to ONNX: what is done before and after it, and proof that the file gives the answers of torch."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import torch
from torch import nn

from utils.config import BATCH, InputError, relative, require
from utils.onnx_quant.graph import strip
from utils.session import open_session, run_model

ROUNDING = 1e-3  # of the largest logit, at most: what sums in another order may move


def without_in_place(model: nn.Module) -> nn.Module:
    """Copy a network for the exporter, which takes twice as long to undo what activations compute in place."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return copied


def set_constants(path: Path, values: dict[str, np.ndarray]) -> None:
    """Change the values of some constants of an ONNX file, which keep their names, shapes and types."""
    model = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, value in values.items():
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(value, name))
    onnx.save(model, path)


def write_metadata(path: Path, **metadata) -> None:
    """Store values as JSON in the ONNX file's ``metadata_props``, where any reader shows them, and check the file.

    What only the exporter needs is dropped first: among it are paths of this machine. A checkpoint's `novelty` is no
    text but an output: see `add_novelty`.
    """
    model = onnx.load(path)
    strip(model)
    texts = {name: json.dumps(value, ensure_ascii=False) for name, value in metadata.items() if name != "novelty"}
    onnx.helper.set_model_props(model, texts)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


@torch.inference_mode()
def check_parity(model: nn.Module, path: Path, images: np.ndarray, batch_sizes: Sequence[int]) -> pd.DataFrame:
    """Compare the logits of torch and ONNX on images float32 (N, 3, H, W) at several batch sizes.

    Returns per batch size `max_abs_diff`, the largest difference; `relative`, the same as a share of the largest logit;
    and `same_answer`, the share of images with the same answer, or one that ties with it but for that difference.
    Raises InputError when the file does not declare its batch axes as dynamic, or its logits are not torch's.
    """
    session = open_session(path)
    for value in (*session.get_inputs(), *session.get_outputs()):
        if not isinstance(value.shape[0], str):
            raise InputError(
                f"{relative(path)}: the batch axis of {value.name!r} is frozen at {value.shape[0]}: "
                "export again with dynamic_shapes"
            )
    expected = np.concatenate([model(part).numpy() for part in torch.from_numpy(images).split(BATCH)])
    best, rows = expected.max(axis=1), []
    for batch in batch_sizes:
        logits = run_model(path, images, batch)
        difference = np.abs(logits - expected).max()
        missed = best - np.take_along_axis(expected, logits.argmax(axis=1)[:, None], axis=1)[:, 0]
        same = float((missed <= 2 * difference).mean())  # both logits may be off by the difference
        rows.append(
            (batch, float(difference), float(difference / max(np.abs(expected).max(), np.finfo(np.float32).tiny)), same)
        )
    found = pd.DataFrame(rows, columns=["batch", "max_abs_diff", "relative", "same_answer"]).set_index("batch")
    require(
        found["relative"].max() <= ROUNDING,
        f"{relative(path)}: its logits are {found['relative'].max():.0e} of the largest away from PyTorch's, where "
        f"{ROUNDING:.0e} may be rounding: this network cannot be exported as it is; choose another ARCH",
    )
    return found
