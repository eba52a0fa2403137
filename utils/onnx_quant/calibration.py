"""Loader → calibration reader → the range of every activation."""

import contextlib
import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import create_calibrator, save_tensors_data
from torch.utils.data import DataLoader

from utils.config import InputError, relative
from utils.progress import progress


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

    def sample(self, count: int) -> np.ndarray:
        """Return `count` images float32 (count, 3, H, W), spread evenly over the data; all when there are fewer."""
        dataset = self.loader.dataset
        return np.stack([dataset[position][0].numpy() for position in spread_evenly(len(dataset), count)])


def spread_evenly(total: int, count: int) -> list[int]:
    """List `count` of `total` positions, equally far apart; all when there are fewer."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(int)).tolist()


class _OneBatch(CalibrationDataReader):
    """A reader of a single batch."""

    def __init__(self, batch: dict[str, np.ndarray]):
        self.batches = iter([batch])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def calibrate(model_path: Path, folder: Path, reader: CalibrationDataReader, method: CalibrationMethod) -> Path:
    """Find the range of every activation; → a new file in `folder` for `quantize_static(calibration_cache_path=...)`.

    One pass over the reader, from its beginning, serves every recipe of this method. ONNX Runtime itself would keep
    what each batch yields until the end, for percentile and entropy whole activations (onnxruntime#10503, #21979), and
    stumble over a short last batch (#18792); here each batch is merged into ranges or histograms at once.
    """
    ranges = Path(tempfile.mkdtemp(dir=folder)) / "ranges.json"
    reader.rewind()
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work,
        contextlib.redirect_stdout(io.StringIO()),  # the calibrator prints for every batch
    ):
        model_path = shutil.copy(model_path, work)  # beside which the calibrator writes
        augmented = str(Path(work) / "augmented.onnx")
        calibrator = create_calibrator(model_path, augmented_model_path=augmented, calibrate_method=method)
        for batch in progress(reader, "calibrate", len(reader)):
            calibrator.collect_data(_OneBatch(batch))
        save_tensors_data(calibrator.compute_data(), ranges)
    return ranges
