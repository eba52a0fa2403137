"""The images that a network is calibrated on, and the range of every activation over them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pandas as pd
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import MinMaxCalibrater, TensorsData, save_tensors_data
from torch.utils.data import DataLoader

from utils.datasets import make_loader
from utils.files import remembered_arrays
from utils.onnx_quant.graph import infer_shapes
from utils.parallel import progress
from utils.session import open_session, run_calls, split_batch

IN_MEMORY = 32  # images read at a time
INPUT = "input"  # name of the tensor of images
OFF_TIES = np.float32(1.01)  # in place of 1, the largest pixel
MEAN_PIXELS = 400_000  # of images, for a mean over them


class ImageFolderDataReader(CalibrationDataReader):
    """Feed a loader's images to ONNX Runtime's calibration, once, batch by batch, in the loader's order.

    The loader must use the evaluation transform and no shuffling: what is calibrated is then what is predicted, bit for
    bit. Nothing is held in memory beyond one batch.
    """

    def __init__(self, loader: DataLoader, input_name: str = INPUT):
        self.input_name = input_name
        self.batches = iter(loader)

    def __len__(self) -> int:
        return len(self.batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch as ``{input_name: float32 (B, 3, H, W)}``, or None at the end."""
        batch = next(self.batches, None)
        return None if batch is None else {self.input_name: batch[0].numpy()}


class CalibrationSet:
    """The images that a prepared network is calibrated on, and the ranges of its activations over them.

    `image_set` makes a Dataset of rows of the `index`; `ranges` are what `measure_ranges` finds, which is remembered in
    the .npz file `cache`, if there is one.
    """

    def __init__(
        self,
        prepared_path: Path,
        image_set: Callable,
        index: pd.DataFrame,
        ranges: dict | None = None,
        cache: Path | None = None,
    ):
        self.prepared_path, self.image_set, self.index = prepared_path, image_set, index
        if not ranges and cache:
            parts = [prepared_path, image_set(index).transform, index[["path", "sha256"]].to_csv()]
            ranges = remembered_arrays(cache, parts, lambda: measure_ranges(prepared_path, self.reader))
        self.ranges = ranges or measure_ranges(prepared_path, self.reader)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def reader(self) -> ImageFolderDataReader:
        """A new reader of these images: one that was read to its end would show ONNX Runtime nothing."""
        return ImageFolderDataReader(make_loader(self.image_set(self.index), IN_MEMORY))

    def part(self, rows: np.ndarray) -> CalibrationSet:
        """Make a set of some of these images, by position; the network does not run again."""
        ranges = {name: values[rows] for name, values in self.ranges.items()}
        return CalibrationSet(self.prepared_path, self.image_set, self.index.iloc[rows], ranges)

    def save_ranges(self) -> Path:
        """Write the MinMax range of every activation; → a new file for `quantize_static(calibration_cache_path=…)`.

        Mean and std of 0.5 make pixels range from -1 to 1, all of them half-way between two integers, which runtimes
        round up or down. A little more range prevents that.
        """
        path = Path(tempfile.mkdtemp(dir=self.prepared_path.parent)) / "ranges.json"
        found = {name: (values[:, 0].min(), values[:, 1].max()) for name, values in self.ranges.items()}
        if found[INPUT] == (-1, 1):
            found[INPUT] = -OFF_TIES, OFF_TIES
        pairs = {name: (np.array([low]), np.array([high])) for name, (low, high) in found.items()}
        save_tensors_data(TensorsData(CalibrationMethod.MinMax, pairs), path)
        return path

    def sample(self, count: int | None = None) -> np.ndarray:
        """Return `count` images float32 (count, 3, H, W), equally far apart in the set; all when there are fewer.

        None: as many as have 400,000 pixels together, but 8 to 32. A mean over images and places settles sooner where
        the maps are large.
        """
        if count is None:
            count = int(np.clip(MEAN_PIXELS // self.sample(1)[0, 0].size, 8, 32))
        chosen = self.image_set(self.index.iloc[evenly_spaced(len(self), count)])
        return np.stack([image.numpy() for image, _ in chosen])


def evenly_spaced(total: int, count: int) -> list[int]:
    """List `count` of `total` positions, equally far apart; all when there are fewer."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(int)).tolist()


def measure_ranges(model_path: Path, reader: CalibrationDataReader) -> dict[str, np.ndarray]:
    """Run the network over the reader's images; → the smallest and largest value of each activation per image, (N, 2).

    One pass serves every calibration set that is drawn from these images: the MinMax range over a set is the smallest
    and the largest value in any of its images. The tensors are those that ONNX Runtime's own calibrator would choose,
    and the ranges its own but for some millionths: it runs the graph as written, which takes more than twice as long.
    """
    names = sorted(_activations(model_path))
    model = ir.load(model_path)
    infer_shapes(model)
    values = ir.convenience.create_value_mapping(model.graph)
    ends = [_reduce(model.graph, operator, values[name]) for name in names for operator in ("ReduceMin", "ReduceMax")]
    model.graph.outputs[:] = ends
    session = open_session(ir.to_proto(model).SerializeToString(), threads=1, in_order=True)
    found = []
    for batch in progress(reader, "calibrate", len(reader)):
        parts = split_batch(batch[INPUT])
        for part, outputs in zip(parts, run_calls(session, parts), strict=True):
            rows = [_rows_of_image(output, len(part)) for output in outputs]
            low = [row.min(axis=1) for row in rows[::2]]
            high = [row.max(axis=1) for row in rows[1::2]]
            found.append(np.stack([low, high], axis=-1))  # (T, images, 2)
    return dict(zip(names, np.concatenate(found, axis=1), strict=True))


def _activations(model_path: Path) -> set[str]:
    """Name the tensors whose range ONNX Runtime's calibrator observes."""
    with tempfile.TemporaryDirectory() as work:  # a calibrator writes beside the file it is given
        calibrator = MinMaxCalibrater(shutil.copy(model_path, work))
        names, _ = calibrator.select_tensors_to_calibrate(calibrator.model)
    return names


def _reduce(graph: ir.Graph, operator: str, value: ir.Value) -> ir.Value:
    """Reduce an activation along all axes but its free one, which the images make; → a new tensor (N,)."""
    shape = value.shape or []
    free = next((axis for axis, size in enumerate(shape) if not isinstance(size, int)), None)  # attention: the second
    axes = ir.tensor(np.array([axis for axis in range(len(shape)) if axis != free], np.int64))
    tape = ir.tape.Tape(graph)
    reduced = tape.op(operator, [value, tape.op("Constant", [], {"value": axes})], {"keepdims": 0})
    reduced.name = f"{value.name}/{operator}"
    return reduced


def _rows_of_image(values: np.ndarray, images: int) -> np.ndarray:
    """Part values (M,) by image: (N, M / N). What does not depend on the image counts for every one."""
    return values.reshape(images, -1) if values.ndim and len(values) % images == 0 else np.tile(values, (images, 1))
