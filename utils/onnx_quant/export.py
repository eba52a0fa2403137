"""Export to ONNX: what is done before and after it, and proof that the file gives torch's predictions."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
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


def write_metadata(path: Path, **metadata) -> None:
    """Store values as JSON in the ONNX file's ``metadata_props``, where any reader shows them, and check the file.

    What only the exporter needs is dropped first: among it are paths of this machine. A checkpoint's `novelty` is no
    text but an output: see `add_novelty`.
    """
    model = ir.load(path)
    strip(model)
    texts = {name: json.dumps(value, ensure_ascii=False) for name, value in metadata.items() if name != "novelty"}
    model.metadata_props.clear()
    model.metadata_props.update(texts)
    ir.save(model, path)
    onnx.checker.check_model(path, full_check=True)


@torch.inference_mode()
def check_parity(model: nn.Module, path: Path, images: np.ndarray, batch_sizes: Sequence[int]) -> pd.DataFrame:
    """Compare the logits of torch and ONNX on images float32 (N, 3, H, W) at several batch sizes.

    Returns per batch size `max_abs_diff`, the largest difference, and `relative`, the same as a share of the largest
    logit. Raises InputError when the file does not declare its batch axes as dynamic, or its logits are not torch's.
    """
    session = open_session(path)
    for value in (*session.get_inputs(), *session.get_outputs()):
        if not isinstance(value.shape[0], str):
            raise InputError(
                f"{relative(path)}: the batch axis of {value.name!r} is frozen at {value.shape[0]}: "
                "export again with dynamic_shapes"
            )
    expected = np.concatenate([model(part).numpy() for part in torch.from_numpy(images).split(BATCH)])
    found = pd.DataFrame(index=pd.Index(batch_sizes, name="batch"))
    found["max_abs_diff"] = [float(np.abs(run_model(path, images, batch) - expected).max()) for batch in batch_sizes]
    found["relative"] = found["max_abs_diff"] / max(np.abs(expected).max(), np.finfo(np.float32).tiny)
    largest = found["relative"].max()
    require(
        largest <= ROUNDING,
        f"{relative(path)}: its logits are {largest:.0e} of the largest away from PyTorch's, where {ROUNDING:.0e} may "
        "be rounding: this network cannot be exported as it is; choose another ARCH",
    )
    return found
