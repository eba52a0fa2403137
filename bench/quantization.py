"""INT8 beside fp32, PyTorch, OpenVINO and onnxsim: python -m bench.quantization [--arch A --name RUN --data DIR].

Needs the checkpoint that run.py makes with the same options and, for the last rows, openvino with nncf, and onnxsim,
which nothing else here needs. The images are split into halves: the first calibrates, chooses the recipe and corrects
the biases, by the functions of onnx_quant.ipynb; the second is what the table is measured on. Each model runs in a
process of its own with as many threads, and rounds visit them in random order: read the ratios, not the milliseconds.
"""

import importlib.util
import multiprocessing
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from bench.options import Options, parse_options
from utils import stopwatch
from utils.config import SEED, THREADS, project_path

ROUNDS, BATCH = 25, 32
BUDGET = {"agreement": 0.99, "macro_f1": 0.005, "worst_recall": 0.01}
COUNT_MEMORY = "import bench.quantization as bench, sys; bench.calibrate_many(*sys.argv[1:])"


def main() -> None:
    """Print the table of models, and then the memory of calibration."""
    options = parse_options(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))
        print(f"\n{'calibration images':>18}{'peak MB':>9}")
        for count in (300, 10_000):
            command = [sys.executable, "-c", COUNT_MEMORY, Path(folder) / "prepared.onnx", str(count)]
            done = subprocess.run(command, cwd=project_path("."), capture_output=True, text=True, check=True)
            print(f"{count:18,}{float(done.stdout):9.0f}", flush=True)


def compare(options: Options, folder: Path) -> None:
    """Make every model in `folder` from the first half of the images, and print the table of the second half."""
    from bench.notebooks import define
    from utils.datasets import ImageDataset, evaluation_transform
    from utils.model import load_model
    from utils.onnx_quant import graph, ranges
    from utils.split import load_index

    arch, run, data = options
    checkpoint, float_path = run / f"fine_tuned_{arch}.pth", folder / "onnx.onnx"
    model, details = load_model(checkpoint)
    export, quantize = define("onnx_quant", "export", "quantize", details=details)
    export(model, float_path)
    graph.prepare(float_path, folder / "prepared.onnx")

    shuffled = load_index(run / "split.csv", data).sample(frac=1, random_state=0)
    transform = evaluation_transform(details["preprocessing"])
    image_set = partial(ImageDataset, data, classes=details["classes"], transform=transform)
    first = ranges.CalibrationSet(folder / "prepared.onnx", image_set, shuffled.iloc[::2])
    second = image_set(shuffled.iloc[1::2])
    print(f"{arch}: {len(first)} images calibrate and choose, {len(second)} are measured on")
    files = {"pytorch": checkpoint, "onnx": float_path}
    files |= quantize_ours(quantize, first, float_path)
    shown = first.sample(len(first))
    files |= quantize_openvino(float_path, shown)
    files |= quantize_onnxsim(float_path, shown)
    print_table(files, np.stack([image.numpy() for image, _ in second]), np.array(second.labels))


def print_table(files: dict[str, Path], images: np.ndarray, labels: np.ndarray) -> None:
    """Score each model against the exported one on images (N, 3, H, W), time it, and print a row."""
    from utils.onnx_quant.candidates import score

    logits = {name: run_alone(path, images) for name, path in files.items()}
    latency = time_alone(files, images[:1])
    print(f"{'model':18}{'agreement':>10}{'SQNR dB':>9}{'macro-F1':>10}{'kB':>9}{'ms':>8}{'/ onnx':>8}")
    for name, path in files.items():
        row = score(labels, logits["onnx"], logits[name])
        kilobytes = sum(part.stat().st_size for part in {path, path.with_suffix(".bin")} if part.exists()) / 1000
        print(
            f"{name:18}{row['agreement']:10.3f}{row['sqnr_db']:9.1f}{row['macro_f1']:10.3f}{kilobytes:9.0f}"
            f"{latency[name]:8.3f}{latency[name] / latency['onnx']:8.2f}"
        )


def quantize_ours(quantize: Callable, calibration_set, float_path: Path) -> dict[str, Path]:
    """Search on the calibration set as onnx_quant.ipynb does, and print the choice; → the files to compare.

    `quantize(prepared_path, calibration_set, target, recipe)` writes an INT8 file.
    """
    from utils.config import cpu_info
    from utils.onnx_quant import candidates, export, recipes

    cpu, prepared = cpu_info(), calibration_set.prepared_path
    images = calibration_set.sample(len(calibration_set))
    labels = np.array(calibration_set.image_set(calibration_set.index).labels)
    scoring = candidates.ScoringSet(float_path, calibration_set.index.assign(split="valid"), images, labels)
    started = time.perf_counter()
    tried = recipes.candidate_recipes("any", cpu, prepared)
    table = candidates.try_recipes(tried, quantize, calibration_set, scoring, float_path.with_name("search.json"))
    table["within_budget"] = candidates.within_budget(table, BUDGET)
    chosen = tried[candidates.choose(table) - 1]
    print(f"chosen from {len(tried)} in {time.perf_counter() - started:.0f} s: {chosen.name}; VNNI: {cpu['vnni']}")
    kinds = {
        "int8": chosen,
        "int8 first": tried[0],
        "int8 uncorrected": tried[0]._replace(correct_biases=False),
        "int8 by default": recipes.LIBRARY_DEFAULT,
    }
    paths = {name: float_path.with_name(f"{name}.onnx") for name in kinds}
    for name, path in paths.items():
        started = time.perf_counter()
        quantize(prepared, calibration_set, path, kinds[name])
        export.write_metadata(path)  # which brings the file to the size that it has in a run
        print(f"{name}: quantized in {time.perf_counter() - started:.1f} s, ranges known")
    return paths


def quantize_openvino(float_path: Path, images: np.ndarray) -> dict[str, Path]:
    """Convert and quantize the same ONNX file by NNCF's defaults; → the files, or none without the packages."""
    if not (importlib.util.find_spec("openvino") and importlib.util.find_spec("nncf")):
        print("no openvino rows: pip install openvino nncf")
        return {}
    import nncf
    import openvino

    started = time.perf_counter()
    model = openvino.convert_model(float_path)
    quantized = nncf.quantize(model, nncf.Dataset([image[None] for image in images]))
    print(f"openvino int8: quantized in {time.perf_counter() - started:.1f} s")
    paths = {name: float_path.with_name(f"{name}.xml") for name in ("openvino", "openvino int8")}
    openvino.save_model(model, paths["openvino"], compress_to_fp16=False)
    openvino.save_model(quantized, paths["openvino int8"], compress_to_fp16=False)
    return paths


def quantize_onnxsim(float_path: Path, images: np.ndarray) -> dict[str, Path]:
    """Quantize by onnxsim: as it is, with its bias correction, and after its equalization; → files, or none without it.

    Its AdaRound and AdaQuant leave convolutions as they are, so there is nothing of theirs to measure here.
    """
    if not importlib.util.find_spec("onnxsim"):
        print("no onnxsim rows: pip install onnxsim")
        return {}
    import onnx
    import onnxsim

    batches = [{"input": image[None]} for image in images]
    started, plain = time.perf_counter(), onnx.load(float_path)
    quantized = onnxsim.quantize_static(plain, batches, full_graph=True)
    equalized = onnxsim.cross_layer_equalize(plain)
    models = {
        "onnxsim": quantized,
        "onnxsim corrected": onnxsim.correct_bias(plain, quantized, batches[:32]),
        "onnxsim equalized": onnxsim.quantize_static(equalized, batches, full_graph=True),
    }
    print(f"onnxsim: three files in {time.perf_counter() - started:.1f} s")
    paths = {name: float_path.with_name(f"{name}.onnx") for name in models}
    for name, path in paths.items():
        onnx.save(models[name], path)
    return paths


def load(path: Path, image: np.ndarray) -> None:
    """Open a model in this process, and keep the image to time it with."""
    global _model, _image
    _model, _image = open_model(path), image


def open_model(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Open a model of any kind; → a function of images (N, 3, H, W) that returns logits (N, C)."""
    if path.suffix == ".xml":
        import openvino

        settings = {"INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY"}
        compiled = openvino.Core().compile_model(path, "CPU", settings)
        return lambda images: compiled(images)[0]
    from utils.compare_models.predictor import Predictor

    return Predictor(path).run


def answer(images: np.ndarray) -> np.ndarray:
    """Answer images with the model of this process."""
    return np.concatenate([_model(images[start : start + BATCH]) for start in range(0, len(images), BATCH)])


def visit() -> list[float]:
    """Time this process's model in ms."""
    return stopwatch.visit(lambda: _model(_image))


def worker(path: Path, image: np.ndarray) -> ProcessPoolExecutor:
    """Start a process with one model in it."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), load, (path, image))


def run_alone(path: Path, images: np.ndarray) -> np.ndarray:
    """Answer images in a process of its own."""
    with worker(path, images[:1]) as pool:
        return pool.submit(answer, images).result()


def time_alone(files: dict[str, Path], image: np.ndarray) -> dict[str, float]:
    """Time one image in each model; → median in ms."""
    generator = random.Random(SEED)
    with ExitStack() as stack:
        pools = {name: stack.enter_context(worker(path, image)) for name, path in files.items()}
        visits = {name: partial(_visit, pool) for name, pool in pools.items()}
        rounds = [stopwatch.time_round(visits, generator) for _ in range(ROUNDS)]
    return {name: float(np.median(np.concatenate([found[name] for found in rounds]))) for name in files}


def _visit(pool: ProcessPoolExecutor) -> list[float]:
    return pool.submit(visit).result()


def calibrate_many(path: str, count: str) -> None:
    """Calibrate a network on `count` images, and print this process's peak memory in MB."""
    import pandas as pd
    import torch

    from utils.onnx_quant.ranges import CalibrationSet
    from utils.session import open_session

    image = torch.randn(1, *open_session(Path(path)).get_inputs()[0].shape[1:])

    def image_set(index: pd.DataFrame) -> torch.utils.data.Dataset:
        return torch.utils.data.TensorDataset(image.expand(len(index), -1, -1, -1), torch.zeros(len(index)))

    images = CalibrationSet(Path(path), image_set, pd.DataFrame(index=range(int(count))))
    images.save_ranges()
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    print(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1e3)


if __name__ == "__main__":
    main()
