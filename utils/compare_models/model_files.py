"""The files that are compared: where they are, what they weigh, and whether they belong together."""

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx.external_data_helper import ExternalDataInfo, _get_all_tensors, uses_external_data

from utils.compare_models.predictor import Predictor
from utils.config import InputError, project_path, relative


def model_paths(run: Path, arch: str, others: dict[str, str]) -> dict[str, Path]:
    """Name the files to compare: the three of a run, but none if `arch` is empty, and `others`, name → path."""
    paths = {}
    if arch:
        paths["pytorch"] = run / f"fine_tuned_{arch}.pth"
        paths["onnx"] = run / f"{arch}.onnx"
        paths["int8"] = run / f"{arch}_int8.onnx"
    for name, path in others.items():
        paths[name] = project_path(path)
    return paths


def file_bytes(path: Path) -> int:
    """Count a model's bytes on the disk, those outside the ``.onnx`` file included.

    Raises InputError naming the external file that is missing, as when only the ``.onnx`` has been moved.
    """
    if not path.exists():
        return 0  # opening the file says how to make it
    if path.suffix != ".onnx":
        return path.stat().st_size
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # protobuf's own kind; opening the file says what is wrong with it
        return path.stat().st_size
    names = {ExternalDataInfo(tensor).location for tensor in _get_all_tensors(model) if uses_external_data(tensor)}
    missing = [name for name in sorted(names) if not (path.parent / name).is_file()]
    if missing:
        raise InputError(f"{relative(path)} needs {', '.join(missing)} beside it, which is not there: copy it too")
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in names)


def check_alike(models: Sequence[Predictor]) -> None:
    """Raise InputError unless all files stem from one run: the same preprocessing and the same split."""
    for model in models[1:]:
        for name in ("preprocessing", "split_hash"):
            if model.details.get(name) != models[0].details.get(name):
                raise InputError(
                    f"{relative(model.path)} and {relative(models[0].path)} differ in {name}, so they are not of one "
                    "run: run train.ipynb and onnx_quant.ipynb again"
                )
