"""What a network makes of an image before its last layer, computed once."""

from __future__ import annotations

import hashlib
import io
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from sklearn.utils import gen_batches
from torch import Tensor, nn
from torch.utils.data import DataLoader

from utils import parallel
from utils.config import BATCH, SEED, THREADS
from utils.files import whole_file
from utils.model import DEVICE, classifier_names, is_small

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

TASK = 16  # images that a thread takes at a time
COMPONENTS = 100  # principal ones, of features for plain classifiers
STANDARDIZED = 1000  # rows whose squares are in memory at a time
_EXPORTING = threading.Lock()  # the exporter is one for all threads
_exported: dict[tuple, InferenceSession] = {}  # by the network's fingerprint and the shape of its images: one at most


class _Body(nn.Module):
    """A network without its last layer: images (N, 3, S, S) → features (N, D)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.forward_head(self.model.forward_features(images), pre_logits=True)


class _Runner:
    """A network without its last layer as a function: images (B, 3, S, S) → features (B, D), on one core.

    Large ones are exported when they are first called, by one thread while the others wait.
    """

    def __init__(self, model: nn.Module):
        self.model, self.session = model, None

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> np.ndarray:
        if DEVICE.type != "cpu" or is_small(self.model):  # done before an export would be
            return _Body(self.model).eval()(images.to(DEVICE)).cpu().numpy()
        with _EXPORTING:
            self.session = self.session or _open_body(self.model, (BATCH, *images.shape[1:]))
        filled = nn.functional.pad(images, (0,) * 7 + (-len(images) % BATCH,))  # the batch is fixed, which is faster
        rows = [self.session.run(None, {"input": part.numpy()})[0] for part in filled.split(BATCH)]
        return np.concatenate(rows)[: len(images)]


def extract_features(model: nn.Module, loader: DataLoader, cache: Path | None = None) -> np.ndarray:
    """Return what the last layer sees, one row of features (N, D) per image, in the loader's order.

    Rows are kept in the folder `cache`, by a hash of the network and of the image as prepared, so that none is computed
    twice. On the CPU, large networks run in ONNX Runtime, which is several times faster than torch.
    """
    folder = cache / fingerprint(model) if cache else None
    stored = _read_rows(folder) if folder else {}
    dataset, known, run = loader.dataset, set(stored), _Runner(model)

    def rows_of(batch: slice) -> tuple[list[str], dict[str, np.ndarray]]:
        images = torch.stack([dataset[position][0] for position in range(batch.start, batch.stop)])
        batch_keys = [hashlib.blake2b(image.numpy().tobytes(), digest_size=16).hexdigest() for image in images]
        missing = {key: position for position, key in enumerate(batch_keys) if key not in known}
        rows = run(images[list(missing.values())]) if missing else []
        return batch_keys, dict(zip(missing, rows, strict=True))

    keys, computed = [], {}
    threads = THREADS if DEVICE.type == "cpu" else 1
    for batch_keys, batch_rows in parallel.run(rows_of, gen_batches(len(dataset), TASK), "features", threads):
        keys += batch_keys
        computed.update(batch_rows)
    if computed and folder:
        _write_rows(folder, computed)
    stored.update(computed)
    return np.stack([stored[key] for key in keys])


def _open_body(model: nn.Module, shape: Sequence[int]) -> InferenceSession:
    """Export a network without its last layer, unless it is the last one that was: that takes most of a second."""
    from utils.session import open_session  # EDA needs no ONNX Runtime otherwise

    key = fingerprint(model), *shape
    if key not in _exported:
        _exported.clear()
        _exported[key] = open_session(to_onnx(model, shape), threads=1)
    return _exported[key]


def compact(features: np.ndarray) -> np.ndarray:
    """Standardize features (N, D) and keep 100 principal axes, with a mean squared length of 10 whatever D was."""
    rows, scaler = features.astype(np.float32), StandardScaler(copy=False)
    for batch in gen_batches(len(rows), STANDARDIZED):  # all at once takes five times the memory of the rows
        scaler.partial_fit(rows[batch])
    rows = scaler.transform(rows)
    if not rows.any():  # all images are alike
        return rows[:, :COMPONENTS]
    reduce = PCA(min(COMPONENTS, *features.shape), copy=False, random_state=SEED)
    axes = reduce.fit_transform(rows)
    return axes * np.sqrt(10 / (axes**2).sum(axis=1).mean())


def last_block(features: np.ndarray, sizes: Sequence[int] | None) -> np.ndarray:
    """Select, of features (N, D) of all blocks with these `sizes`, those that the network's own last layer sees."""
    return features[:, -sizes[-1] :] if sizes else features


def fingerprint(model: nn.Module, whole: bool = False) -> str:
    """Hash the structure and the weights before the last layer, or of the `whole` network."""
    last = [] if whole else classifier_names(model)
    digest = hashlib.blake2b(f"{type(model).__name__}{getattr(model, 'sizes', None)}".encode(), digest_size=8)
    for name, value in model.state_dict().items():
        if name not in last:
            digest.update(f"{name}{tuple(value.shape)}".encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()


def to_onnx(model: nn.Module, shape: Sequence[int]) -> bytes:
    """Export a network without its last layer, for images of one shape (N, 3, S, S); → the ONNX file."""
    file, images = io.BytesIO(), torch.zeros(*shape, device=next(model.parameters()).device)
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter takes half a second where torch.export takes ten
        torch.onnx.export(_Body(model).eval(), (images,), file, input_names=["input"], dynamo=False)
    return file.getvalue()


def _read_rows(folder: Path) -> dict[str, np.ndarray]:
    """Map the rows of all files, by their images' keys, without reading them; a damaged file is removed."""
    rows = {}
    for path in sorted(folder.glob("*.npy")):
        try:
            stored = np.load(path, mmap_mode="r")
            rows.update(zip(stored["key"].tolist(), np.asarray(stored["row"]), strict=True))
        except Exception:  # numpy raises EOF and value errors alike
            path.unlink(missing_ok=True)
    return rows


def _write_rows(folder: Path, rows: dict[str, np.ndarray]) -> None:
    key, row = next(iter(rows.items()))
    stored = np.array(list(rows.items()), [("key", f"U{len(key)}"), ("row", row.dtype, row.shape)])
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.blake2b("".join(rows).encode(), digest_size=8).hexdigest()
    with whole_file(folder / f"{name}.npy") as path:
        np.save(path, stored)
