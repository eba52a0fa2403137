"""Pretrain the ConvNet on five Fruits-360 classes and write checkpoints/conv_net.pth.

    python tools/pretrain_conv_net.py DATA

DATA holds one folder per class: apple, banana, cherry, lychee, orange (tools/download_fruits360.py fetches them).
Lychee has 50 images where the others have hundreds, so each class weighs the same in the loss, and its held-out recall
is printed with the wide interval that so few images leave.
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torchvision.transforms import InterpolationMode, v2

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.checkpoint import save_checkpoint
from utils.config import CHECKPOINTS, InputError, relative, seed_everything
from utils.datasets import Augmentation, ImageDataset, evaluation_transform, make_loader
from utils.images import scan_folder
from utils.intervals import wilson_interval
from utils.metrics import macro_f1
from utils.model import ConvNet, predict

EPOCHS = 8
BATCH_SIZE = 32
LEARNING_RATE = 2e-3
HELD_OUT = 0.2  # of each class, the last frames in a row: neighbouring frames of a turntable are near-duplicates
PREPROCESSING = {"image_size": 64, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3}


def split_frames(index: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Hold out the last frames of each class, in the order of the numbers in their names."""
    frame = index["path"].map(lambda path: int(re.findall(r"\d+", Path(path).name)[0]))
    rank = frame.groupby(index["class"]).rank(pct=True, method="first")
    return index[rank <= 1 - HELD_OUT], index[rank > 1 - HELD_OUT]


def train(model: nn.Module, dataset: ImageDataset, class_weights: torch.Tensor) -> None:
    """Train with a one-cycle learning rate; every class weighs the same, however few images it has."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    steps = EPOCHS * len(make_loader(dataset, BATCH_SIZE, epoch=0))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    model.train()
    for epoch in range(EPOCHS):
        for images, labels in make_loader(dataset, BATCH_SIZE, epoch=epoch):
            loss = nn.functional.cross_entropy(model(images), labels, weight=class_weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{EPOCHS}  loss {loss.item():.3f}", flush=True)


def report(labels: np.ndarray, predictions: np.ndarray, classes: list[str]) -> float:
    """Print the held-out recall of each class with its interval, and return macro-F1."""
    for label, name in enumerate(classes):
        hits, total = (predictions[labels == label] == label).sum(), (labels == label).sum()
        low, high = wilson_interval(hits, total)
        print(f"{name:8s} {hits} of {total} right, 95 % interval {low:.0%} to {high:.0%}")
    score = macro_f1(labels, predictions, len(classes))
    print(f"held-out macro-F1 {score:.3f} (later frames of the same fruits, so it is optimistic)")
    return score


def main(data: Path, output: Path) -> None:
    """Train, score on the held-out frames, save."""
    seed_everything()
    index, refused = scan_folder(data)
    classes = sorted(index["class"].unique())
    train_index, valid_index = split_frames(index)
    basic = evaluation_transform(PREPROCESSING)
    augmented = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomRotation(180, interpolation=InterpolationMode.BILINEAR, fill=255),
            v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.2),
            basic,
        ]
    )
    train_set = ImageDataset(data, train_index, classes, basic, Augmentation(augmented, classes))
    counts = np.bincount(train_set.labels, minlength=len(classes))
    per_class = ", ".join(f"{name} {count}" for name, count in zip(classes, counts, strict=True))
    print(f"{len(index)} images ({len(refused)} refused), training on {per_class}")
    model = ConvNet(len(classes))
    train(model, train_set, torch.tensor(counts.mean() / counts, dtype=torch.float32))
    logits, labels = predict(model, make_loader(ImageDataset(data, valid_index, classes, basic), 128))
    metrics = {"valid_macro_f1": report(labels, logits.argmax(1), classes)}
    details = {"arch": "conv_net", "classes": classes, "preprocessing": PREPROCESSING, "split_hash": ""}
    save_checkpoint(output, model, **details, metrics=metrics)
    print(f"wrote {relative(output)} ({output.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="folder with one folder of photos per class")
    parser.add_argument("--output", type=Path, default=CHECKPOINTS / "conv_net.pth")
    arguments = parser.parse_args()
    try:
        main(arguments.data, arguments.output)
    except InputError as error:
        sys.exit(f"pretrain_conv_net.py: {error}")
