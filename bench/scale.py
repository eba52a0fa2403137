"""Cost of the notebooks as data grows: python -m bench.scale [IMAGES CLASSES [ARCH]].

Generates a folder of noisy blobs (several views of each; the classes differ by color, and overlap), of 64 pixels or,
for another network than conv_net, of 224; runs the four notebooks on it, and then groups 20,000 pictures. Prints
seconds and the peak memory of each.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

import run
from bench.pipeline import measure, measure_notebook

VIEWS = 5  # images of one object


def blob(generator: np.random.Generator, label: int, object_number: int, side: int = 64) -> np.ndarray:
    """Draw one view, uint8 (side, side, 3), of an object whose color and size follow from its class and number."""
    of_class, of_object = np.random.default_rng(label), np.random.default_rng([label, object_number])
    color = of_class.uniform(0, 220, 3) + of_object.normal(0, 20, 3)
    radius = of_object.uniform(0.19, 0.44) * side
    y, x = np.mgrid[:side, :side]
    center = side / 2 + generator.uniform(-0.05, 0.05, 2) * side
    inside = np.hypot(y - center[0], x - center[1]) < radius
    pixels = np.where(inside[..., None], color + generator.normal(0, 12, (side, side, 3)), 255)
    return pixels.clip(0, 255).astype(np.uint8)


def fill(folder: Path, images: int, classes: int, side: int) -> None:
    """Write JPEGs, as many per class."""
    generator = np.random.default_rng(0)
    for number in range(images):
        rank, label = divmod(number, classes)
        path = folder / f"class_{label:02d}" / f"{rank:05d}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(blob(generator, label, rank // VIEWS, side)).save(path)


def group(images: int, classes: int) -> None:
    """Group pictures in memory; called in a process of its own."""
    from utils.eda.duplicates import Descriptor, describe_colors, group_by_looks

    generator = np.random.default_rng(0)
    numbers = np.arange(images)
    objects = [(number % classes, number // classes // VIEWS) for number in numbers]
    pictures = np.stack([blob(generator, *each) for each in objects])
    index = pd.DataFrame({"path": [f"{each}" for each in numbers], "class": [f"{each % classes}" for each in numbers]})
    index["pixels"] = index["path"]
    started = time.perf_counter()
    colors = describe_colors(pictures, index["class"].to_numpy())
    strangers = generator.normal(size=(images, 1280)).astype(np.float32)  # as many features as a network's
    strangers /= np.linalg.norm(strangers, axis=1, keepdims=True)
    groups = group_by_looks(index, [colors, [Descriptor(strangers, "cosine", scale=0.1)]])
    print(f"{groups.nunique()} groups of {len(set(objects))} objects, {time.perf_counter() - started:.0f} s")


def main() -> None:
    """Print seconds and megabytes."""
    images, classes = (int(number) for number in sys.argv[1:3]) if len(sys.argv) > 2 else (10_000, 50)
    arch = sys.argv[3] if len(sys.argv) > 3 else "conv_net"
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), images, classes, side=64 if arch == "conv_net" else 224)
        shutil.rmtree(run.ROOT / "checkpoints" / "bench", ignore_errors=True)  # or it would be another folder's run
        settings = {"NAME": "bench", "DATA": folder, "GROUPS": "", "ARCH": arch}
        print(f"{images} images in {classes} classes, {arch}", flush=True)
        for name in run.NOTEBOOKS:
            seconds, peak = measure_notebook(name, settings)
            print(f"{name:16}{seconds:6.0f} s{peak / 1e6:8.0f} MB", flush=True)
    command = [sys.executable, "-c", f"from bench.scale import group; group(20_000, {classes})"]
    _, seconds, peak = measure(lambda: subprocess.run(command, cwd=run.ROOT, check=True))
    print(f"grouping of 20,000 pictures: {seconds:.0f} s with making them, {peak / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
