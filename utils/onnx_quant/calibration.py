"""Calibration: which images ONNX Runtime is shown, and what it learns from them."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import save_tensors_data
from torch.utils.data import DataLoader

from utils.config import InputError, relative
from utils.datasets import make_loader
from utils.onnx_quant.ranges import Ranges, collect_histograms, measure_ranges

BATCH = 32  # images in memory at a time
MEAN_PIXELS = 400_000  # of images, for a mean over them
HISTOGRAM_IMAGES = 32  # at most: with 128 the files are no better, and a histogram takes ten times as long as a range


class ImageFolderDataReader(CalibrationDataReader):
    """Feed a loader's images to ONNX Runtime's calibration, batch by batch, in the loader's order.

    The loader must use the evaluation transform and no shuffling: what is calibrated is then what is predicted, bit for
    bit. Nothing is held in memory beyond one batch.
    """

    def __init__(self, loader: DataLoader, input_name: str = "input"):
        self.loader, self.input_name = loader, input_name
        self.rewind()

    def __len__(self) -> int:
        return len(self.loader)

    def rewind(self) -> None:
        """Start again with the first batch."""
        self.batches, self.position = iter(self.loader), 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch as ``{input_name: float32 (B, 3, H, W)}``, or None at the end."""
        images = next(self.batches, (None,))[0]
        if images is None:
            return None
        bad = (~images.flatten(1).isfinite().all(dim=1)).nonzero().flatten()
        if len(bad):
            path = self.loader.dataset.paths[self.position + int(bad[0])]
            raise InputError(f"{relative(path)}: its pixels are not finite numbers after preprocessing; remove it")
        self.position += len(images)
        return {self.input_name: images.numpy()}


def spread_evenly(total: int, count: int) -> list[int]:
    """List `count` of `total` positions, equally far apart; all when there are fewer."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(int)).tolist()


class CalibrationSet:
    """The images that a prepared network is calibrated on, and the ranges of its activations over them.

    `image_set` makes a Dataset of rows of the `index`.
    """

    def __init__(self, prepared_path: Path, image_set: Callable, index: pd.DataFrame, ranges: Ranges | None = None):
        self.prepared_path, self.image_set, self.index = prepared_path, image_set, index
        self.ranges = ranges or measure_ranges(prepared_path, self.reader)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def reader(self) -> ImageFolderDataReader:
        """A new reader of these images: one that was read to its end would show ONNX Runtime nothing."""
        return ImageFolderDataReader(make_loader(self.image_set(self.index), BATCH))

    def part(self, rows: np.ndarray) -> "CalibrationSet":
        """Make a set of some of these images, by position; the network does not run again."""
        return CalibrationSet(self.prepared_path, self.image_set, self.index.iloc[rows], self.ranges.of(rows))

    def save_ranges(self, method: CalibrationMethod) -> Path:
        """Write the range of every activation; → a new file for `quantize_static(calibration_cache_path=…)`."""
        path = Path(tempfile.mkdtemp(dir=self.prepared_path.parent)) / "ranges.json"
        if method == CalibrationMethod.MinMax:
            self.ranges.save(path)
        else:
            some = self.part(np.array(spread_evenly(len(self), HISTOGRAM_IMAGES)))
            save_tensors_data(collect_histograms(self.prepared_path, some.reader, method), path)
        return path

    def sample(self, count: int | None = None) -> np.ndarray:
        """Return `count` images float32 (count, 3, H, W), spread evenly over the set; all when there are fewer.

        None: as many as have 400,000 pixels together, but 8 to 32. A mean over images and places settles sooner where
        the maps are large.
        """
        if count is None:
            count = int(np.clip(MEAN_PIXELS // self.sample(1)[0, 0].size, 8, 32))
        chosen = self.image_set(self.index.iloc[spread_evenly(len(self), count)])
        return np.stack([image.numpy() for image, _ in chosen])
