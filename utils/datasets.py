"""Rows of the table → Dataset → loader, by the one preprocessing there is."""

import copy
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from utils.config import RANDOM_NUMBERS, SEED, THREADS
from utils.images import prepare, read_image, resize
from utils.parallel import check_copy

PREPARED_BYTES = 300_000_000  # of images that datasets may keep in memory as prepared: some 6,000 of 64 × 64 pixels


class Preparation(NamedTuple):
    """`images.prepare` as a transform: an image (PIL) → float32 (3, S, S)."""

    preprocessing: dict

    def __call__(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(prepare(image, self.preprocessing))

    def resize(self, image: Image.Image) -> Image.Image:
        """Take the first step only."""
        return resize(image, (self.preprocessing["image_size"],) * 2, self.preprocessing["interpolation"])


def evaluation_transform(preprocessing: dict) -> Preparation:
    """Build the one preprocessing: resize (no crop, whole picture), scale to [0, 1], normalize; → float32 (3, S, S)."""
    return Preparation({name: preprocessing[name] for name in ("image_size", "interpolation", "mean", "std")})


def to_pixels(image: Tensor, preprocessing: dict) -> np.ndarray:
    """Undo the normalization for the eye: (3, S, S) → (S, S, 3) in [0, 1]."""
    mean = torch.tensor(preprocessing["mean"])[:, None, None]
    std = torch.tensor(preprocessing["std"])[:, None, None]
    return (image * std + mean).clip(0, 1).permute(1, 2, 0).numpy()


class Prepared(dict):
    """Images in memory as they were prepared. They stay in the process: a worker of a cluster starts with none."""

    def __reduce__(self) -> tuple:
        return Prepared, ()


class Augmentation(NamedTuple):
    """A random transform (train.ipynb has it), the classes whose images it is for, and the seed it is drawn from."""

    transform: Callable
    classes: Sequence[str]
    seed: int = SEED


class ImageDataset(Dataset):
    """Images of a folder with their labels: what the transform returns, and the position of the class in `classes`.

    `index` holds the images' rows of the table. Random transforms, of some classes, are drawn from (seed, epoch, the
    image's class and name) alone, so an epoch has the same bits in every fold. Datasets with the same transforms may
    share the images that are `prepared`, up to 300 MB of them.
    """

    def __init__(
        self,
        folder: Path,
        index: pd.DataFrame,
        classes: Sequence[str],
        transform: Callable,
        augmentation: Augmentation | None = None,
        prepared: Prepared | None = None,
    ):
        self.prepared = prepared
        self.index = index
        self.folder = folder
        self.paths = [folder / path for path in index["path"]]
        self.hashes = dict(zip(self.paths, index["sha256"], strict=True)) if "sha256" in index else {}
        self.labels = [list(classes).index(name) for name in index["class"]]
        self.transform = transform
        self.augmentation = augmentation or Augmentation(transform, classes=())
        self.augmented_labels = {list(classes).index(name) for name in self.augmentation.classes}
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        label = self.labels[position]
        epoch = self.epoch if label in self.augmented_labels else None
        image = None if self.prepared is None else self.prepared.get((self.paths[position], epoch))
        if image is None:
            image = self._prepare(position, epoch)
            if self.prepared is not None and (len(self.prepared) + 1) * image.nbytes <= PREPARED_BYTES:
                self.prepared[self.paths[position], epoch] = image
        return image, label

    def _prepare(self, position: int, epoch: int | None) -> Tensor:
        """Read an image and prepare it, or vary it as this epoch demands."""
        path = self.paths[position]
        if self.hashes:
            check_copy(path, self.hashes[path])
        image = read_image(path)
        if epoch is None:
            return self.transform(image)
        name = zlib.crc32(f"{self.index['class'].iloc[position]}/{path.name}".encode())
        draw = np.random.SeedSequence([self.augmentation.seed, epoch, name]).generate_state(1, np.uint64)
        with RANDOM_NUMBERS, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(draw[0]))  # torch.manual_seed takes a millisecond
            return self.augmentation.transform(image)

    def in_epoch(self, epoch: int) -> "ImageDataset":
        """Return the same images as they come in an epoch."""
        dataset = copy.copy(self)
        dataset.epoch = epoch
        return dataset

    def stack(self) -> Tensor:
        """Return all images as one batch (N, 3, S, S)."""
        with ThreadPoolExecutor(THREADS) as pool:
            return torch.stack([image for image, _ in pool.map(self.__getitem__, range(len(self)))])


def make_loader(dataset: ImageDataset, batch_size: int = 16, epoch: int | None = None) -> DataLoader:
    """Batch a dataset in its order, or, for training, shuffled and augmented as `epoch` demands.

    Larger batches are no faster on a CPU, and 64 photos take EfficientNet-Lite0 600 MB more than 16.
    """
    if epoch is None:
        return DataLoader(dataset, batch_size)
    generator = torch.Generator().manual_seed(dataset.augmentation.seed * 1_000_003 + epoch)
    single = len(dataset) % batch_size == 1  # from a last batch of one image, batch norm cannot learn
    return DataLoader(dataset.in_epoch(epoch), batch_size, shuffle=True, generator=generator, drop_last=single)
