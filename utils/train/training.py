"""One epoch of training, and the whole recipe in folds."""

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.config import InputError, relative
from utils.datasets import ImageDataset, make_loader
from utils.metrics import cross_entropy, macro_f1
from utils.model import DEVICE, classifier_names, fitting_threads, predict
from utils.train.head import fit_head, head_logits, set_head

HISTORY = ["train_loss", "valid_loss", "valid_macro_f1"]
SLOWER = 3  # times, that pretrained layers learn than the new one


def train_epoch(
    model: nn.Module, loader: DataLoader, optimizer: Optimizer, schedule: LRScheduler | None = None
) -> float:
    """Run one epoch of cross-entropy training, a step of the schedule per batch; return the mean loss per image.

    Raises InputError as soon as the loss is no longer a number: the weights are lost from then on.
    """
    model.train()
    total, seen = 0.0, 0
    with fitting_threads(model):
        for images, labels in loader:
            loss = nn.functional.cross_entropy(model(images.to(DEVICE)), labels.to(DEVICE))
            if not math.isfinite(loss.item()):
                raise InputError(f"the training loss became {loss.item()}: lower LEARNING_RATE and run training again")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if schedule:
                schedule.step()
            total, seen = total + loss.item() * len(labels), seen + len(labels)
    return total / seen


def make_optimizer(model: nn.Module, learning_rate: float, steps: int) -> tuple[Optimizer, LRScheduler]:
    """Build AdamW and its schedule; pretrained layers learn more slowly than the head (Howard and Ruder 2018).

    The rates rise for 30 % of the `steps` and fall in a cosine (Smith and Topin 2019).
    """
    names = classifier_names(model)
    pretrained = [parameter for name, parameter in model.named_parameters() if name not in names]
    rates = [learning_rate / SLOWER, learning_rate]
    optimizer = torch.optim.AdamW(
        [{"params": pretrained}, {"params": model.get_classifier().parameters()}], lr=learning_rate
    )
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=max(1, steps))


def default_epochs(arch: str) -> int:
    """Say for how many epochs to fine-tune: a small network gains from it, one that knows ImageNet does not."""
    return 3 if arch == "conv_net" else 0


def best_epoch(history: pd.DataFrame) -> int:
    """Find the epoch with the highest valid_macro_f1; ties go to the lower valid_loss, then to the earlier one."""
    return int(history.sort_values(["valid_macro_f1", "valid_loss"], ascending=[False, True], kind="stable").index[0])


def save_last(
    path: Path, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler, history: pd.DataFrame, **details
) -> None:
    """Write all that `resume_training` needs, whole or not at all."""
    states = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    save_checkpoint(path, model, **states, history=history.to_numpy().tolist(), **details)


def resume_training(path: Path, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler, run: dict) -> list:
    """Load what the last epoch left into model, optimizer and schedule; → the history's rows so far, none without file.

    Raises InputError when `run`, what the training depends on, is not what it was then.
    """
    if not path.exists():
        return []
    last = load_checkpoint(path)
    changed = [name for name, value in run.items() if last["run"].get(name) != value]
    if changed:
        raise InputError(
            f"{relative(path)} was trained with another {' and '.join(changed)}: "
            "set it as it was to go on, or RESUME = False to start again"
        )
    model.load_state_dict(last["state_dict"])
    optimizer.load_state_dict(last["optimizer"])
    schedule.load_state_dict(last["schedule"])
    return last["history"]


def fine_tune(
    model: nn.Module,
    train_set: ImageDataset,
    valid_loader: DataLoader,
    epochs: int,
    batch_size: int,
    learning_rate: float,
) -> nn.Module:
    """Train and return the model with the weights of its `best_epoch`; the state that comes in is epoch 0 and may win.

    This is train.ipynb's loop without its files and plots.
    """
    steps = epochs * len(make_loader(train_set, batch_size, epoch=1))
    optimizer, schedule = make_optimizer(model, learning_rate, steps)
    history, weights = pd.DataFrame(columns=HISTORY, dtype=float), {}
    for epoch in range(epochs + 1):
        loss = math.nan
        if epoch:
            loss = train_epoch(model, make_loader(train_set, batch_size, epoch=epoch), optimizer, schedule)
        logits, labels = predict(model, valid_loader)
        history.loc[epoch] = loss, cross_entropy(logits, labels), macro_f1(labels, logits.argmax(1), logits.shape[1])
        if best_epoch(history) == epoch:
            weights = copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)
    return model


def head_then_fine_tune(
    train: pd.DataFrame,
    valid: pd.DataFrame,
    test: pd.DataFrame,
    *,
    model: nn.Module,
    features: np.ndarray,
    rows: np.ndarray,
    codes: np.ndarray,
    image_set: Callable[..., ImageDataset],
    augmented: Sequence[str],
    epochs: int,
    **recipe,
) -> tuple[np.ndarray, dict]:
    """Run the whole recipe of train.ipynb once; → logits (N, C) of `test`, and the weights that differ from `model`'s.

    The three parts are rows of the index that `features` and `rows` come from (`view_features`), `codes` its groups as
    numbers. `model` has the pretrained weights and stays as it is. Without `epochs`, features are enough.
    """
    chosen = np.isin(rows, train.index)
    labels = pd.Series(image_set(train).labels, train.index)[rows[chosen]].to_numpy()
    head = fit_head(features[chosen], labels, codes[rows[chosen]], model.get_classifier().out_features)
    if not epochs:
        weights = [torch.from_numpy(each).float() for each in head]
        state = dict(zip(classifier_names(model), weights, strict=True))
        return head_logits(head, features[test.index]), state
    model = set_head(copy.deepcopy(model), head)
    valid_loader = make_loader(image_set(valid), batch_size=64)
    model = fine_tune(model, image_set(train, augmented), valid_loader, epochs, **recipe)
    logits, _ = predict(model, make_loader(image_set(test), batch_size=64))
    return logits, {name: value.detach().cpu() for name, value in model.state_dict().items()}
