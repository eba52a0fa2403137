"""An epoch of fine-tuning, its optimizer, and the record of what a training reached; train.ipynb has the loop."""

import copy
import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.utils.data import DataLoader

from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.config import InputError, require
from utils.datasets import ImageDataset, make_loader
from utils.metrics import cross_entropy, macro_f1
from utils.model import DEVICE, classifier_names, one_thread_if_small, predict

HISTORY = ["train_loss", "valid_loss", "valid_macro_f1"]
HEAD_RATE = 3  # times the learning rate of the pretrained layers


def default_epochs(arch: str) -> int:
    """Say for how many epochs to fine-tune: a small network gains from it, one that knows ImageNet does not."""
    return 3 if arch == "conv_net" else 0


def make_optimizer(model: nn.Module, learning_rate: float, steps: int) -> tuple[Optimizer, LRScheduler]:
    """Build AdamW and its schedule; pretrained layers learn more slowly than the head (Howard and Ruder 2018).

    The rates rise for 30 % of the `steps` and fall in a cosine (Smith and Topin 2019).
    """
    last = classifier_names(model)
    pretrained = [parameter for name, parameter in model.named_parameters() if name not in last]
    groups = [{"params": pretrained}, {"params": model.get_classifier().parameters()}]
    optimizer = AdamW(groups, lr=learning_rate)
    return optimizer, OneCycleLR(optimizer, [learning_rate / HEAD_RATE, learning_rate], total_steps=max(1, steps))


def train_epoch(
    model: nn.Module,
    loader: DataLoader,
    optimizer: Optimizer,
    schedule: LRScheduler | None = None,
    class_weight: str | None = None,
) -> float:
    """Run one epoch of cross-entropy training, a step of the schedule per batch; return the mean loss per image.

    With `class_weight` "balanced", the images of a class weigh together as much as those of another. Raises InputError
    as soon as the loss is no longer a number: the weights are lost from then on.
    """
    model.train()
    total, seen = 0.0, 0
    weight = _balance(loader.dataset.labels, model.get_classifier().out_features) if class_weight else None
    with one_thread_if_small(model):
        for images, labels in loader:
            loss = nn.functional.cross_entropy(model(images.to(DEVICE)), labels.to(DEVICE), weight)
            if not math.isfinite(loss.item()):
                raise InputError(f"the training loss became {loss.item()}: lower LEARNING_RATE and run training again")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if schedule:
                schedule.step()
            total += loss.item() * len(labels)
            seen += len(labels)
    return total / seen if seen else math.nan  # of a single image batch norm cannot learn: the loader has none


def _balance(labels: list[int], num_classes: int) -> torch.Tensor:
    """Weigh classes so that the images of one count together as much as those of another; 1 for a class without."""
    weight, present = np.ones(num_classes), np.unique(labels)
    weight[present] = compute_class_weight("balanced", classes=present, y=labels)
    return torch.tensor(weight, dtype=torch.float32, device=DEVICE)


def score(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return cross-entropy and macro-F1 of logits (N, C) for labels (N,)."""
    return cross_entropy(logits, labels), macro_f1(labels, logits.argmax(axis=1), logits.shape[1])


def check_reloaded(model: nn.Module, valid: ImageDataset, metrics: dict) -> None:
    """Make sure that a network read from disk is that of the best epoch, by its loss on the validation images."""
    loss, _ = score(*predict(model, make_loader(valid)))
    require(
        bool(np.isclose(loss, metrics["valid_loss"], rtol=0.02, atol=1e-3)),
        f"the checkpoint has a validation loss of {loss:.4f}, its best epoch had {metrics['valid_loss']:.4f}: "
        "run train.ipynb again",
    )


def best_epoch(history: pd.DataFrame) -> int:
    """Find the epoch with the highest valid_macro_f1; ties go to the lower valid_loss, then to the earlier one."""
    require(len(history) > 0, "no epoch was finished, so there is no network to go on with: run training again")
    return int(history.sort_values(["valid_macro_f1", "valid_loss"], ascending=[False, True], kind="stable").index[0])


class Record:
    """What a training has reached: the `history`, a row per epoch, and the best epoch's weights.

    They stay in memory or, with a path, on disk: the best epoch's checkpoint with `details` (arch, classes,
    preprocessing, split_hash).
    """

    def __init__(self, path: Path | None = None, details: dict | None = None):
        self.path = path
        self.details = details or {}
        self.history = pd.DataFrame(columns=HISTORY, dtype=float)
        self.best_weights: dict = {}

    def add(self, model: nn.Module, train_loss: float, logits: np.ndarray, labels: np.ndarray) -> None:
        """Add an epoch by its training loss (nan for epoch 0) and its logits (N, C) on the validation images."""
        epoch = len(self.history)
        valid_loss, valid_macro_f1 = score(logits, labels)
        self.history.loc[epoch] = train_loss, valid_loss, valid_macro_f1
        if best_epoch(self.history) != epoch:
            return
        metrics = {"epoch": epoch, "valid_loss": valid_loss, "valid_macro_f1": valid_macro_f1}
        if self.path:
            save_checkpoint(self.path, model, **self.details, metrics=metrics)
        else:
            self.best_weights = copy.deepcopy(model.state_dict())

    def best_model(self, model: nn.Module) -> nn.Module:
        """Put the best epoch's weights back into the network; → it."""
        weights = load_checkpoint(self.path)["state_dict"] if self.path else self.best_weights
        model.load_state_dict(weights)
        return model
