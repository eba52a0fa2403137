"""INT8 beside fp32, PyTorch and OpenVINO: python -m bench.quantization [--arch A --name RUN --data DIR].

Needs the checkpoint that run.py makes with the same options and, for the last two rows, openvino and nncf, which
nothing else here needs. The images are split into halves: the first calibrates, chooses the recipe and corrects the
biases, the second is what the table is measured on. Each model runs in a process of its own with as many threads, and
rounds visit them in random order: read the ratios, not the milliseconds.
"""

import importlib.util
import multiprocessing
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from bench.options import Options, parse_options
from utils.config import THREADS, project_path

ROUNDS, CALLS, BATCH = 25, 8, 32
BUDGET = {"agreement": 0.99, "macro_f1": 0.005, "worst_recall": 0.01}
COUNT_MEMORY = "import bench.quantization as bench, sys; bench.calibrate_many(int(sys.argv[1]), sys.argv[2])"


def main() -> None:
    """Print the table of models, and then the memory of calibration."""
    options = parse_options(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))
    print(f"\n{'calibration':14}{'images':>8}{'peak MB':>9}")
    for method in ("MinMax", "Percentile", "Entropy"):
        for count in (300, 10_000):
            command = [sys.executable, "-c", COUNT_MEMORY, str(count), method]
            done = subprocess.run(command, cwd=project_path("."), capture_output=True, text=True, check=True)
            print(f"{method:14}{count:8,}{float(done.stdout):9.0f}", flush=True)


def compare(options: Options, folder: Path) -> None:
    """Make every model in `folder`, score them on the second half, time them, and print the table."""
    from utils.datasets import ImageDataset, evaluation_transform
    from utils.model import load_model
    from utils.onnx_quant.onnx_file import export_onnx, write_metadata
    from utils.onnx_quant.recipe_search import score
    from utils.split import load_index

    arch, run, data = options
    checkpoint = run / f"fine_tuned_{arch}.pth"
    model, details = load_model(checkpoint)
    index = load_index(run / "split.csv", data)
    dataset = ImageDataset(data, index, details["classes"], evaluation_transform(details["preprocessing"]))
    images, labels = np.stack([image.numpy() for image, _ in dataset]), np.array(dataset.labels)
    order = np.random.default_rng(0).permutation(len(images))
    first, second = order[::2], order[1::2]
    print(f"{arch}: {len(first)} images calibrate and choose, {len(second)} are measured on")
    export_onnx(model, details["preprocessing"]["image_size"], folder / "onnx.onnx")
    write_metadata(folder / "onnx.onnx")
    files = {"pytorch": checkpoint, "onnx": folder / "onnx.onnx"}
    files |= quantize_ours(folder, images[first], labels[first])
    files |= quantize_openvino(folder, images[first])
    logits = {name: run_alone(name, path, images[second]) for name, path in files.items()}
    latency = time_alone(files, images[:1])
    print(f"{'model':18}{'agreement':>10}{'SQNR dB':>9}{'macro-F1':>10}{'kB':>9}{'ms':>8}{'/ onnx':>8}")
    for name, path in files.items():
        row = score(labels[second], logits["onnx"], logits[name])
        kilobytes = sum(part.stat().st_size for part in {path, path.with_suffix(".bin")} if part.exists()) / 1000
        print(
            f"{name:18}{row['agreement']:10.3f}{row['sqnr_db']:9.1f}{row['macro_f1']:10.3f}{kilobytes:9.0f}"
            f"{latency[name]:8.3f}{latency[name] / latency['onnx']:8.2f}"
        )


def quantize_ours(folder: Path, images: np.ndarray, labels: np.ndarray) -> dict[str, Path]:
    """Search on the calibration half, as onnx_quant.ipynb does, and print the choice; → the files to compare."""
    import pandas as pd
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from utils.config import cpu_info
    from utils.onnx_quant.calibration import ImageFolderDataReader, calibrate
    from utils.onnx_quant.graph import prepare
    from utils.onnx_quant.recipe_search import choose, rank_sensitivity, try_recipes
    from utils.onnx_quant.recipes import candidate_recipes, type_recipes

    prepared, ranges, cpu = folder / "prepared.onnx", {}, cpu_info()
    prepare(folder / "onnx.onnx", prepared)
    reader = ImageFolderDataReader(DataLoader(TensorDataset(torch.from_numpy(images)), 16))
    for recipe in candidate_recipes(cpu, prepared, []).values():
        method = recipe["calibrate_method"]
        ranges[method] = ranges.get(method) or calibrate(prepared, folder, reader, method)
    quantize = partial(write_int8, prepared=prepared, ranges=ranges, images=reader.sample(32))
    started = time.perf_counter()
    sensitivity = rank_sensitivity(quantize, prepared, next(iter(type_recipes(cpu).values())), images[:64])
    recipes = candidate_recipes(cpu, prepared, list(sensitivity.index))
    rows = try_recipes(quantize, recipes, folder / "onnx.onnx", images, labels, np.full(len(images), True))
    chosen, _ = choose(pd.DataFrame(rows[1:]).set_index("recipe"), rows[0], BUDGET)
    print(f"chosen from {len(recipes)} in {time.perf_counter() - started:.0f} s: {chosen}; VNNI: {cpu['vnni']}")
    first, default = next(iter(recipes)), list(recipes)[-1]
    kinds = {
        "int8": recipes[chosen],
        "int8 first": recipes[first],
        "int8 uncorrected": recipes[first] | {"correct": False},
        "int8 by default": recipes[default],
    }
    paths = {name: folder / f"{name}.onnx" for name in kinds}
    for name, path in paths.items():
        started = time.perf_counter()
        quantize(path, **kinds[name])
        print(f"{name}: quantized in {time.perf_counter() - started:.1f} s, ranges known")
    return paths


def write_int8(target: Path, *, prepared: Path, ranges: dict, images: np.ndarray, **recipe) -> None:
    """Quantize with known ranges, and bring the file to the size that it has in a run."""
    from utils.onnx_quant.onnx_file import write_metadata
    from utils.onnx_quant.recipes import quantize_file

    quantize_file(prepared, target, ranges[recipe["calibrate_method"]], images, **recipe)
    write_metadata(target)


def quantize_openvino(folder: Path, images: np.ndarray) -> dict[str, Path]:
    """Convert and quantize the same ONNX file by NNCF's defaults; → the files, or none without the packages."""
    if not (importlib.util.find_spec("openvino") and importlib.util.find_spec("nncf")):
        print("no openvino rows: pip install openvino nncf")
        return {}
    import nncf
    import openvino

    started = time.perf_counter()
    model = openvino.convert_model(folder / "onnx.onnx")
    quantized = nncf.quantize(model, nncf.Dataset([image[None] for image in images]))
    print(f"openvino int8: quantized in {time.perf_counter() - started:.1f} s")
    paths = {"openvino": folder / "openvino.xml", "openvino int8": folder / "openvino_int8.xml"}
    openvino.save_model(model, paths["openvino"], compress_to_fp16=False)
    openvino.save_model(quantized, paths["openvino int8"], compress_to_fp16=False)
    return paths


def load(path: Path, image: np.ndarray) -> None:
    """Open a model in this process, and keep the image to time it with."""
    global _run, _image
    _image = image
    if path.suffix == ".xml":
        import openvino

        settings = {"INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY"}
        compiled = openvino.Core().compile_model(path, "CPU", settings)
        _run = lambda images: compiled(images)[0]  # noqa: E731
    else:
        from utils.compare_models.predictor import Predictor

        _run = Predictor(path).run


def run(images: np.ndarray) -> np.ndarray:
    """Answer images with the model of this process."""
    return np.concatenate([_run(images[start : start + BATCH]) for start in range(0, len(images), BATCH)])


def time_calls() -> list[float]:
    """Time some calls of this process's model in ms, after one that warms up."""
    times = []
    for _ in range(CALLS + 1):
        started = time.perf_counter()
        _run(_image)
        times.append((time.perf_counter() - started) * 1e3)
    return times[1:]


def worker(path: Path, image: np.ndarray) -> ProcessPoolExecutor:
    """Start a process with one model in it."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), load, (path, image))


def run_alone(name: str, path: Path, images: np.ndarray) -> np.ndarray:
    """Answer images in a process of its own."""
    with worker(path, images[:1]) as pool:
        return pool.submit(run, images).result()


def time_alone(files: dict[str, Path], image: np.ndarray) -> dict[str, float]:
    """Time one image in each model; → median in ms."""
    generator, times = np.random.default_rng(0), {name: [] for name in files}
    with ExitStack() as stack:
        pools = {name: stack.enter_context(worker(path, image)) for name, path in files.items()}
        for pool in pools.values():
            pool.submit(time_calls).result()
        for _ in range(ROUNDS):
            for name in generator.permutation(list(files)):
                times[name] += pools[name].submit(time_calls).result()
    return {name: float(np.median(values)) for name, values in times.items()}


def calibrate_many(count: int, method: str) -> None:
    """Calibrate a small network on images made up as they are read, and print this process's peak memory in MB."""
    import torch
    from onnxruntime.quantization import CalibrationMethod
    from torch.utils.data import DataLoader, Dataset

    from utils.model import ConvNet
    from utils.onnx_quant.calibration import ImageFolderDataReader, calibrate
    from utils.onnx_quant.onnx_file import export_onnx

    class Noise(Dataset):
        def __len__(self) -> int:
            return count

        def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
            return torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(position)), 0

    with tempfile.TemporaryDirectory() as folder:
        export_onnx(ConvNet(3), 64, Path(folder) / "net.onnx")
        reader = ImageFolderDataReader(DataLoader(Noise(), 16))
        calibrate(Path(folder) / "net.onnx", Path(folder), reader, CalibrationMethod[method])
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    print(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1e3)


if __name__ == "__main__":
    main()
