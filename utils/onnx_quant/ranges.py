"""The range of every activation, found by running a float network over calibration images."""

import contextlib
import io
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import MinMaxCalibrater, TensorsData, create_calibrator, save_tensors_data

from utils.onnx_quant.graph import tensor_shapes
from utils.progress import progress
from utils.session import open_session, run_calls, split_batch


class Ranges(NamedTuple):
    """The smallest and the largest value of T activations, by name, in each of N images: `low` and `high` (N, T)."""

    names: list[str]
    low: np.ndarray
    high: np.ndarray

    def of(self, rows: np.ndarray) -> "Ranges":
        """Choose some of the images, by position."""
        return Ranges(self.names, self.low[rows], self.high[rows])

    def save(self, path: Path) -> None:
        """Write the MinMax range over all images, as `quantize_static(calibration_cache_path=path)` reads it."""
        low, high = self.low.min(axis=0), self.high.max(axis=0)
        pairs = {name: (low[[column]], high[[column]]) for column, name in enumerate(self.names)}
        save_tensors_data(TensorsData(CalibrationMethod.MinMax, pairs), path)


def measure_ranges(model_path: Path, reader: CalibrationDataReader) -> Ranges:
    """Run the network over the reader's images, from the first on, and keep the range of every activation per image.

    One pass serves every calibration set that is drawn from these images: the MinMax range over a set is the smallest
    and the largest value in any of its images. The tensors are those that ONNX Runtime's own calibrator would choose,
    and the ranges its own but for some millionths: it runs the graph as written, which takes more than twice as long.
    """
    model = onnx.load(model_path)
    names, shapes = sorted(_activations(model_path)), tensor_shapes(model)
    for name in names:
        _append_range(model, name, shapes[name])
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=f"{name}{end}") for end in ("_low", "_high") for name in names)
    session = open_session(model.SerializeToString(), threads=1, in_order=True)
    reader.rewind()
    low, high = [], []
    for batch in progress(iter(reader.get_next, None), "calibrate", len(reader)):
        (images,) = batch.values()
        parts = split_batch(images)
        for part, outputs in zip(parts, run_calls(session, parts), strict=True):
            columns = [_rows_of_image(values, len(part)) for values in outputs]
            low.append(np.stack([rows.min(axis=1) for rows in columns[: len(names)]], axis=1))
            high.append(np.stack([rows.max(axis=1) for rows in columns[len(names) :]], axis=1))
    return Ranges(names, np.concatenate(low), np.concatenate(high))


def _rows_of_image(values: np.ndarray, images: int) -> np.ndarray:
    """Part values (M,) by image: (N, M / N). What does not depend on the image counts for every one."""
    return values.reshape(images, -1) if values.ndim and len(values) % images == 0 else np.tile(values, (images, 1))


def _activations(model_path: Path) -> set[str]:
    """Name the tensors whose range ONNX Runtime's calibrator observes."""
    with tempfile.TemporaryDirectory() as work:  # a calibrator writes beside the file it is given
        calibrator = MinMaxCalibrater(shutil.copy(model_path, work))
        names, _ = calibrator.select_tensors_to_calibrate(calibrator.model)
    return names


def _append_range(model: onnx.ModelProto, name: str, shape: list[int]) -> None:
    """Add nodes that compute an activation's minimum and maximum along its free axis, which the images make: (N,)."""
    images_axis = shape.index(0) if 0 in shape else None  # attention has it second: query, key and value come first
    axes = np.array([axis for axis in range(len(shape)) if axis != images_axis], dtype=np.int64)
    model.graph.initializer.append(numpy_helper.from_array(axes, f"{name}_axes"))
    for operator, end in (("ReduceMin", "_low"), ("ReduceMax", "_high")):
        model.graph.node.append(helper.make_node(operator, [name, f"{name}_axes"], [f"{name}{end}"], keepdims=0))


class _OneBatch(CalibrationDataReader):
    """A reader of a single batch."""

    def __init__(self, batch: dict[str, np.ndarray]):
        self.batches = iter([batch])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def collect_histograms(model_path: Path, reader: CalibrationDataReader, method: CalibrationMethod) -> TensorsData:
    """Find the ranges of a method that looks at histograms: percentile or entropy.

    ONNX Runtime itself would keep all activations of all images until the end (onnxruntime#10503, #21979) and stumble
    over a short last batch (#18792); here each batch is merged into the histograms at once.
    """
    reader.rewind()
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work,
        contextlib.redirect_stdout(io.StringIO()),  # the calibrator prints for every batch
    ):
        copied = shutil.copy(model_path, work)  # beside which the calibrator writes
        augmented = str(Path(work) / "augmented.onnx")
        calibrator = create_calibrator(copied, augmented_model_path=augmented, calibrate_method=method)
        for batch in progress(iter(reader.get_next, None), "calibrate", len(reader)):
            for name, images in batch.items():
                for part in split_batch(images):  # whose activations are all kept in memory
                    calibrator.collect_data(_OneBatch({name: part}))
        return calibrator.compute_data()
