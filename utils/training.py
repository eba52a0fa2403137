"""One epoch of training, and the whole recipe in folds."""

import copy
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import StratifiedGroupKFold
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from utils.config import SEED, InputError, seed_everything
from utils.datasets import ImageDataset, make_loader
from utils.metrics import macro_f1
from utils.model import DEVICE, predict


def train_epoch(model: nn.Module, loader: DataLoader, optimizer: Optimizer) -> float:
    """Run one epoch of cross-entropy training and return the mean loss per image.

    Raises InputError as soon as the loss is no longer a number: the weights are lost from then on.
    """
    model.train()
    total = 0.0
    for images, labels in loader:
        loss = nn.functional.cross_entropy(model(images.to(DEVICE)), labels.to(DEVICE))
        if not math.isfinite(loss.item()):
            raise InputError(f"the training loss became {loss.item()}: lower LEARNING_RATE and run training again")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(labels)
    return total / len(loader.dataset)


def fine_tune(
    model: nn.Module,
    train_set: ImageDataset,
    valid_loader: DataLoader,
    epochs: int,
    batch_size: int,
    learning_rate: float,
) -> nn.Module:
    """Train with AdamW and return the model with the weights of the epoch that had the best validation macro-F1.

    This is train.ipynb's loop without its files and plots.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    best, weights = -1.0, {}
    for epoch in range(1, epochs + 1):
        train_epoch(model, make_loader(train_set, batch_size, epoch=epoch), optimizer)
        logits, labels = predict(model, valid_loader)
        score = macro_f1(labels, logits.argmax(1), logits.shape[1])
        if score > best:
            best, weights = score, copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)
    return model


def cross_validate(
    index: pd.DataFrame,
    groups: pd.Series,
    image_set: Callable[..., ImageDataset],
    build: Callable[[], tuple[nn.Module, dict]],
    folds: int,
    seed: int = SEED,
    **recipe,
) -> np.ndarray:
    """Predict every image by a network that saw neither it nor its group; → out-of-fold logits (N, C).

    In each round one fold is predicted, the next one chooses the epoch, and the rest is trained on. `image_set(part,
    training=False)` makes a Dataset of rows of `index`, `build()` a fresh network and its preprocessing, `recipe` goes
    to `fine_tune`. There are fewer folds where a class has fewer groups. Raises InputError for fewer than three folds.
    """
    if folds < 3:
        raise InputError(f"FOLDS is {folds}: at least 3 are needed, to train on one, choose on one and test on one")
    folds = min(folds, groups.groupby(index["class"]).nunique().min())
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    tests = [test for _, test in splitter.split(index, index["class"], groups)]
    logits: dict[int, np.ndarray] = {}
    for fold, test in enumerate(tqdm(tests, "folds", leave=False)):
        seed_everything(seed + fold)
        valid = tests[fold - 1]
        train_set = image_set(index.drop(index.index[np.concatenate([test, valid])]), training=True)
        valid_loader = make_loader(image_set(index.iloc[valid]), batch_size=64)
        model = fine_tune(build()[0], train_set, valid_loader, **recipe)
        predicted, _ = predict(model, make_loader(image_set(index.iloc[test]), batch_size=64))
        logits |= dict(zip(test, predicted, strict=True))
    return np.stack([logits[position] for position in range(len(index))])
