"""Loader → calibration reader."""

import numpy as np
from onnxruntime.quantization import CalibrationDataReader
from torch.utils.data import DataLoader

from utils.config import InputError, relative


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
