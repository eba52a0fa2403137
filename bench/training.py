"""How fast is a good score, and what does more data cost: python -m bench.training [--data DIR --name RUN --arch A].

Needs the split.csv that EDA.ipynb makes. First the training of train.ipynb beside a plain fine-tuning loop in torch, on
the same network, split and preprocessing: seconds until the best validation macro-F1. Then features, head and
cross-validation of the head on 300, 3,000 and 10,000 images made up in 50 classes, each in a process of its own.
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from bench.notebooks import define_training, run_cells
from bench.options import Options, parse_options
from utils.config import project_path, seed_everything
from utils.cross_validation import out_of_fold
from utils.datasets import make_loader
from utils.features import extract_features
from utils.model import build_model, predict, replace_classifier
from utils.split import load_index
from utils.train.head import Head
from utils.train.training import Record, score, train_epoch

PLAIN_EPOCHS = 6
COUNTS = (300, 3_000, 10_000)
GROW = "import bench.training as bench, sys; bench.grow(int(sys.argv[1]))"


class TimedRecord(Record):
    """A record that also keeps the seconds, from its making on, until each epoch was done."""

    def __init__(self):
        super().__init__()
        self.started = time.perf_counter()
        self.seconds = []

    def add(self, *epoch) -> None:
        """Add an epoch, and when it was done."""
        self.seconds.append(time.perf_counter() - self.started)
        super().add(*epoch)


def main() -> None:
    """Print both tables."""
    race(parse_options(__doc__))
    print(f"\n{'images':>8}{'features s':>12}{'head s':>8}{'folds s':>9}{'peak MB':>9}{'features MB':>13}")
    for count in COUNTS:
        command = [sys.executable, "-c", GROW, str(count)]
        done = subprocess.run(command, cwd=project_path("."), capture_output=True, text=True, check=True)
        print(done.stdout, end="", flush=True)


def race(options: Options) -> None:
    """Train both ways and print what each reached, and when."""
    index = load_index(options.run / "split.csv", options.data)
    parts = {part: index[index["split"] == part] for part in ("train", "valid", "test")}
    names = run_cells("train", ["imports", "parameters"], {})
    names.update(ARCH=options.arch, AUGMENT="none", data=options.data, index=index, minority=[])
    names["classes"] = sorted(index["class"].unique())
    print(f"{options.arch}, {len(parts['train'])} training images")
    print(f"{'':22}{'epoch':>6}{'seconds':>9}{'valid':>8}{'test':>8}")
    for name, train in {"head, then fine-tuning": as_the_notebook, "plain fine-tuning": plainly}.items():
        run_cells("train", ["transforms"], names)
        seed_everything(names["SEED"])
        record = TimedRecord()
        model = train(names, parts, record)
        best = record.history["valid_macro_f1"].idxmax()
        _, test_macro_f1 = score(*predict(model, make_loader(names["image_set"](parts["test"]))))
        epoch = best + 1 if train is plainly else best  # only the notebook's has an epoch 0, the head alone
        valid_macro_f1 = record.history["valid_macro_f1"][best]
        print(f"{name:22}{epoch:6}{record.seconds[best]:9.1f}{valid_macro_f1:8.3f}{test_macro_f1:8.3f}", flush=True)


def as_the_notebook(names: dict, parts: dict[str, pd.DataFrame], record: Record) -> torch.nn.Module:
    """Extract features and train as train.ipynb does, but, as the plain loop, without augmentation; → the network."""
    with tempfile.TemporaryDirectory() as folder:
        names["run"] = Path(folder)
        define_training(names)
        return names["fit"](parts["train"], parts["valid"], record)


def plainly(names: dict, parts: dict[str, pd.DataFrame], record: Record) -> torch.nn.Module:
    """Fine-tune from a random last layer, all weights at one rate; → the network."""
    model, dataset = names["backbone"], names["image_set"](parts["train"])
    replace_classifier(model, len(names["classes"]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=names["LEARNING_RATE"])
    valid = make_loader(names["image_set"](parts["valid"]))
    for epoch in range(1, PLAIN_EPOCHS + 1):
        loss = train_epoch(model, make_loader(dataset, names["BATCH_SIZE"], epoch=epoch), optimizer)
        record.add(model, loss, *predict(model, valid))
    return record.best_model(model)


class Noise(Dataset):
    """So many images of noise in 50 classes, which differ in brightness."""

    def __init__(self, count: int):
        self.labels = np.arange(count) % 50

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        generator = torch.Generator().manual_seed(position)
        label = int(self.labels[position])
        return torch.randn(3, 64, 64, generator=generator) + label / 25, label


def grow(count: int) -> None:
    """Fit and cross-validate a head on made-up images, and print seconds and memory."""
    model, _ = build_model("conv_net")
    dataset, head = Noise(count), Head(model.sizes, 50)
    times = [time.perf_counter()]
    features = extract_features(model, make_loader(dataset))
    times.append(time.perf_counter())
    head.fit(features, dataset.labels)
    times.append(time.perf_counter())
    out_of_fold(head, features, dataset.labels, np.arange(count), repeats=1)
    times.append(time.perf_counter())
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))[1]) / 1e3
    first, second, third = np.diff(times)
    print(f"{count:8,}{first:12.1f}{second:8.1f}{third:9.1f}{peak:9.0f}{features.nbytes / 1e6:13.0f}")


if __name__ == "__main__":
    main()
