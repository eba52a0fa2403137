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

from bench.notebooks import run_cells
from bench.options import Options, parse_options
from utils.config import project_path, seed_everything

PLAIN_EPOCHS = 6
COUNTS = (300, 3_000, 10_000)
GROW = "import bench.training as bench, sys; bench.grow(int(sys.argv[1]))"


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
    from utils.model import predict
    from utils.split import load_index
    from utils.train.training import score

    index = load_index(options.run / "split.csv", options.data)
    parts = {part: index[index["split"] == part] for part in ("train", "valid", "test")}
    names = run_cells("train", ["imports", "parameters"], {})
    names.update(data=options.data, index=index, classes=sorted(index["class"].unique()), ARCH=options.arch)
    print(f"{options.arch}, {len(parts['train'])} training images")
    print(f"{'':22}{'epoch':>6}{'seconds':>9}{'valid':>8}{'test':>8}")
    for name, train in {"head, then fine-tuning": as_the_notebook, "plain fine-tuning": plainly}.items():
        run_cells("train", ["transforms"], names)
        seed_everything(names["SEED"])
        record = timed_record()
        model = train(names, parts, record)
        best = record.history["valid_macro_f1"].idxmax()
        test = names["make_loader"](names["image_set"](parts["test"]), 64)
        _, test_macro_f1 = score(*predict(model, test))
        epoch = best + 1 if train is plainly else best  # only the notebook's has an epoch 0, the head alone
        valid_macro_f1 = record.history["valid_macro_f1"][best]
        print(f"{name:22}{epoch:6}{record.seconds[best]:9.1f}{valid_macro_f1:8.3f}{test_macro_f1:8.3f}", flush=True)


def timed_record():
    """Make a record of a training that also keeps the seconds, from now on, until each epoch was done."""
    from utils.train.training import Record

    class TimedRecord(Record):
        def __init__(self):
            super().__init__()
            self.started = time.perf_counter()
            self.seconds = []

        def add(self, *epoch) -> None:
            self.seconds.append(time.perf_counter() - self.started)
            super().add(*epoch)

    return TimedRecord()


def as_the_notebook(names: dict, parts: dict, record):
    """Extract features and train as train.ipynb does, but, as the plain loop, without augmentation; → the network."""
    from utils.train.training import default_epochs

    with tempfile.TemporaryDirectory() as folder:
        names.update(run=Path(folder), augmented=[], epochs=default_epochs(names["ARCH"]))
        run_cells("train", ["views", "fit"], names)
        return names["fit"](parts["train"], parts["valid"], record)


def plainly(names: dict, parts: dict, record):
    """Fine-tune from a random last layer, all weights at one rate; → the network."""
    import torch

    from utils.model import predict, replace_classifier
    from utils.train.training import train_epoch

    model, dataset = names["backbone"], names["image_set"](parts["train"])
    replace_classifier(model, len(names["classes"]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=names["LEARNING_RATE"])
    valid_loader = names["make_loader"](names["image_set"](parts["valid"]), 64)
    record.start(model, optimizer, None)
    for epoch in range(1, PLAIN_EPOCHS + 1):
        loss = train_epoch(model, names["make_loader"](dataset, names["BATCH_SIZE"], epoch=epoch), optimizer)
        record.add(loss, *predict(model, valid_loader))
    return record.best_model()


def grow(count: int) -> None:
    """Fit and cross-validate a head on made-up images, and print seconds and memory."""
    import torch

    from utils.datasets import make_loader
    from utils.features import extract_features
    from utils.model import build_model
    from utils.train.head import Views, fit_head
    from utils.train.strategies import heads_out_of_fold

    labels = np.arange(count) % 50

    class Noise(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return count

        def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
            generator = torch.Generator().manual_seed(position)
            return torch.randn(3, 64, 64, generator=generator) + labels[position] / 25, int(labels[position])

    model, _ = build_model("conv_net")
    times = [time.perf_counter()]
    features = extract_features(model, make_loader(Noise(), 64))
    times.append(time.perf_counter())
    views = Views(features, paths=np.arange(count), labels=labels, groups=np.arange(count))
    fit_head(views, 50)
    times.append(time.perf_counter())
    heads_out_of_fold([(views, None)])
    times.append(time.perf_counter())
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))[1]) / 1e3
    first, second, third = np.diff(times)
    print(f"{count:8,}{first:12.1f}{second:8.1f}{third:9.1f}{peak:9.0f}{features.nbytes / 1e6:13.0f}")


if __name__ == "__main__":
    main()
