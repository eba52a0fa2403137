"""How fast is a good score, and what does more data cost: python -m bench.training [--data DIR --name RUN --arch A].

Needs the split.csv that EDA.ipynb makes. First the recipe of train.ipynb beside a plain fine-tuning loop in torch, on
the same network, split and preprocessing: seconds until the best validation macro-F1. Then features, head and
cross-validation of the head on 300, 3,000 and 10,000 images made up in 50 classes, each in a process of its own.
"""

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from bench.options import parse_options
from utils.config import project_path, seed_everything

PLAIN_EPOCHS = 6
COUNTS = (300, 3_000, 10_000)
GROW = "import bench.training as bench, sys; bench.grow(int(sys.argv[1]))"


def main() -> None:
    """Print both tables."""
    race(*parse_options(__doc__))
    print(f"\n{'images':>8}{'features s':>12}{'head s':>8}{'folds s':>9}{'peak MB':>9}{'features MB':>13}")
    for count in COUNTS:
        command = [sys.executable, "-c", GROW, str(count)]
        done = subprocess.run(command, cwd=project_path("."), capture_output=True, text=True, check=True)
        print(done.stdout, end="", flush=True)


def race(arch: str, run: Path, data: Path) -> None:
    """Train both ways and print what each reached, and when."""
    import torch

    from utils.datasets import ImageDataset, evaluation_transform, make_loader
    from utils.metrics import macro_f1
    from utils.model import build_model, predict
    from utils.split import load_index, separable_groups
    from utils.train.head import fit_head, set_head, view_features
    from utils.train.training import default_epochs, make_optimizer, train_epoch

    index = load_index(run / "split.csv", data)
    classes, codes = sorted(index["class"].unique()), separable_groups(index).factorize()[0]
    _, preprocessing = build_model(arch, len(classes))
    transform = evaluation_transform(preprocessing)

    def image_set(part, augmented=()):
        return ImageDataset(data, part, classes, transform)

    train, valid, test = (index[index["split"] == part] for part in ("train", "valid", "test"))
    loaders = [make_loader(image_set(part), 64) for part in (valid, test)]

    def scores(model):
        pairs = [predict(model, loader) for loader in loaders]
        return [macro_f1(labels, logits.argmax(1), len(classes)) for logits, labels in pairs]

    def ours():
        model, _ = build_model(arch, len(classes))
        features, _ = view_features(model, image_set, train.reset_index(drop=True), [], 0)
        yield set_head(model, fit_head(features, np.array(image_set(train).labels), codes[train.index], len(classes)))
        epochs, dataset = default_epochs(arch), image_set(train)
        optimizer, schedule = make_optimizer(model, 1e-3, epochs * len(make_loader(dataset, 16, epoch=1)))
        for epoch in range(1, epochs + 1):
            train_epoch(model, make_loader(dataset, 16, epoch=epoch), optimizer, schedule)
            yield model

    def plain():
        model, _ = build_model(arch, len(classes))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for epoch in range(1, PLAIN_EPOCHS + 1):
            train_epoch(model, make_loader(image_set(train), 16, epoch=epoch), optimizer)
            yield model

    print(f"{arch}, {len(train)} training images\n{'':22}{'epoch':>6}{'seconds':>9}{'valid':>8}{'test':>8}")
    for name, way in {"head, then fine-tuning": ours, "plain fine-tuning": plain}.items():
        seed_everything(0)
        best, spent, states = (-1.0,), 0.0, way()
        for epoch in range(100):
            started = time.perf_counter()
            model = next(states, None)
            spent += time.perf_counter() - started
            if model is None:
                break
            score = scores(model)
            if score[0] > best[0]:
                best = (*score, epoch + (way is plain), spent)
        print(f"{name:22}{best[2]:6}{best[3]:9.1f}{best[0]:8.3f}{best[1]:8.3f}", flush=True)


def grow(count: int) -> None:
    """Fit and cross-validate a head on made-up images, and print seconds and memory."""
    import pandas as pd
    import torch

    from utils.datasets import make_loader
    from utils.features import extract_features
    from utils.model import build_model
    from utils.train.head import fit_head, head_out_of_fold

    labels = np.arange(count) % 50

    class Noise(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return count

        def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
            generator = torch.Generator().manual_seed(position)
            return torch.randn(3, 64, 64, generator=generator) + labels[position] / 25, int(labels[position])

    model, _ = build_model("conv_net", 50)
    times = [time.perf_counter()]
    features = extract_features(model, make_loader(Noise(), 64))
    times.append(time.perf_counter())
    groups = pd.Series(np.arange(count)).to_numpy()
    fit_head(features, labels, groups, 50)
    times.append(time.perf_counter())
    head_out_of_fold(features, np.arange(count), labels, groups)
    times.append(time.perf_counter())
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))[1]) / 1e3
    first, second, third = np.diff(times)
    print(f"{count:8,}{first:12.1f}{second:8.1f}{third:9.1f}{peak:9.0f}{features.nbytes / 1e6:13.0f}")


if __name__ == "__main__":
    main()
