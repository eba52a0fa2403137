"""Rows of the table → Dataset → loader, by the one preprocessing there is."""

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from utils.config import SEED
from utils.images import read_image


def evaluation_transform(preprocessing: dict) -> v2.Compose:
    """Build the one preprocessing: resize (no crop, whole picture), scale to [0, 1], normalize; → float32 (3, S, S)."""
    size = preprocessing["image_size"]
    return v2.Compose(
        [
            v2.Resize((size, size), interpolation=InterpolationMode(preprocessing["interpolation"])),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(preprocessing["mean"], preprocessing["std"]),
        ]
    )


def to_pixels(image: Tensor, preprocessing: dict) -> np.ndarray:
    """Undo the normalization for the eye: (3, S, S) → (S, S, 3) in [0, 1]."""
    mean, std = (torch.tensor(preprocessing[name])[:, None, None] for name in ("mean", "std"))
    return (image * std + mean).clip(0, 1).permute(1, 2, 0).numpy()


class ImageDataset(Dataset):
    """Images of a folder with their labels; minority classes may have a transform of their own.

    Yields (image, label): what the transform returns and the position of the class in `classes`. Random transforms are
    drawn from (seed, epoch, the image's path) alone, so an epoch has the same bits with and without workers, and in
    every fold.
    """

    def __init__(
        self,
        folder: Path,
        index: pd.DataFrame,
        classes: Sequence[str],
        transform: Callable,
        minority: Sequence[str] = (),
        minority_transform: Callable | None = None,
        seed: int = SEED,
    ):
        self.paths = [folder / path for path in index["path"]]
        self.names = [zlib.crc32(path.encode()) for path in index["path"]]
        self.labels = [list(classes).index(name) for name in index["class"]]
        self.minority_labels = {list(classes).index(name) for name in minority}
        self.transform, self.minority_transform = transform, minority_transform or transform
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        image, label = read_image(self.paths[position]), self.labels[position]
        if label not in self.minority_labels:
            return self.transform(image), label
        with torch.random.fork_rng(devices=[]):
            draw = np.random.SeedSequence([self.seed, self.epoch, self.names[position]]).generate_state(1, np.uint64)
            torch.manual_seed(int(draw[0]))
            return self.minority_transform(image), label


def make_loader(dataset: ImageDataset, batch_size: int, epoch: int | None = None, workers: int = 0) -> DataLoader:
    """Batch a dataset in its order, or, for training, shuffled and augmented as `epoch` demands.

    In training a last batch of one image is dropped, since batch norm cannot learn from it.
    """
    context = "spawn" if workers else None  # the same on every system
    if epoch is None:
        return DataLoader(dataset, batch_size, num_workers=workers, multiprocessing_context=context)
    dataset.epoch = epoch
    order = torch.Generator().manual_seed(dataset.seed * 1_000_003 + epoch)
    lonely = len(dataset) % batch_size == 1
    return DataLoader(
        dataset,
        batch_size,
        shuffle=True,
        generator=order,
        drop_last=lonely,
        num_workers=workers,
        multiprocessing_context=context,
    )
