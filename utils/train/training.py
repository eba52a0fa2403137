"""An epoch of fine-tuning, its optimizer, and the record of what a training reached."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.utils.data import DataLoader

from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.config import InputError, listing, relative, require
from utils.metrics import cross_entropy, macro_f1
from utils.model import DEVICE, classifier_names, one_thread_if_small

HISTORY = ["train_loss", "valid_loss", "valid_macro_f1"]
HEAD_RATE = 3  # times the learning rate of the pretrained layers


def augmented_classes(augment: str, minority: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Name the classes to augment: all, none, or the minority. Raises InputError for a setting that makes no sense."""
    require(set(minority) <= set(classes), f"MINORITY {minority}: there are only {listing(classes)}")
    choices = {"minority": list(minority), "all": list(classes), "none": []}
    require(augment in choices, f"AUGMENT {augment!r}: use 'minority', 'all' or 'none'")
    return choices[augment]


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
    model: nn.Module, loader: DataLoader, optimizer: Optimizer, schedule: LRScheduler | None = None
) -> float:
    """Run one epoch of cross-entropy training, a step of the schedule per batch; return the mean loss per image.

    Raises InputError as soon as the loss is no longer a number: the weights are lost from then on.
    """
    model.train()
    total, seen = 0.0, 0
    with one_thread_if_small(model):
        for images, labels in loader:
            loss = nn.functional.cross_entropy(model(images.to(DEVICE)), labels.to(DEVICE))
            if not math.isfinite(loss.item()):
                raise InputError(f"the training loss became {loss.item()}: lower LEARNING_RATE and run training again")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if schedule:
                schedule.step()
            total += loss.item() * len(labels)
            seen += len(labels)
    return total / seen


def score(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return cross-entropy and macro-F1 of logits (N, C) for labels (N,)."""
    return cross_entropy(logits, labels), macro_f1(labels, logits.argmax(axis=1), logits.shape[1])


def best_epoch(history: pd.DataFrame) -> int:
    """Find the epoch with the highest valid_macro_f1; ties go to the lower valid_loss, then to the earlier one."""
    require(len(history) > 0, "no epoch was finished, so there is no network to go on with: run training again")
    return int(history.sort_values(["valid_macro_f1", "valid_loss"], ascending=[False, True], kind="stable").index[0])


class Record:
    """What a training has reached: the `history`, a row per epoch, and the best epoch's weights.

    It lives in memory or, with paths, on disk: the best epoch's checkpoint with `details` (arch, classes,
    preprocessing, split_hash), and the last epoch's with all that resuming needs and compares, `settings` among it.
    """

    def __init__(
        self,
        best_path: Path | None = None,
        last_path: Path | None = None,
        details: dict | None = None,
        settings: dict | None = None,
        resume: bool = False,
    ):
        self.best_path = best_path
        self.last_path = last_path
        self.details = details or {}
        self.settings = settings or {}
        self.resume = resume
        self.history = pd.DataFrame(columns=HISTORY, dtype=float)
        self.best_weights: dict = {}

    def start(self, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler) -> None:
        """Begin a training or, to resume one, load what its last epoch left on disk.

        Raises InputError when details or settings are no longer those of the training on disk.
        """
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        if not self.resume or not self.last_path.exists():
            return
        last = load_checkpoint(self.last_path)
        before = last.get("settings", {})
        changed = [name for name, value in self.details.items() if last.get(name) != value]
        changed += [name for name, value in self.settings.items() if before.get(name) != value]
        require(
            not changed,
            f"{relative(self.last_path)} was trained with another {' and '.join(changed)}: "
            "set it as it was to go on, or RESUME = False to start again",
        )
        model.load_state_dict(last["state_dict"])
        optimizer.load_state_dict(last["optimizer"])
        schedule.load_state_dict(last["schedule"])
        self.history = pd.DataFrame(last["history"], columns=HISTORY, dtype=float)

    @property
    def next_epoch(self) -> int:
        """The first epoch that is still to come; epoch 0 is the head alone."""
        return len(self.history)

    def add(self, train_loss: float, logits: np.ndarray, labels: np.ndarray) -> None:
        """Add an epoch by its training loss (nan for epoch 0) and its logits (N, C) on the validation images."""
        epoch = self.next_epoch
        valid_loss, valid_macro_f1 = score(logits, labels)
        self.history.loc[epoch] = train_loss, valid_loss, valid_macro_f1
        if best_epoch(self.history) == epoch:
            self._keep_best({"epoch": epoch, "valid_loss": valid_loss, "valid_macro_f1": valid_macro_f1})
        if self.last_path:
            self._keep_last()

    def _keep_best(self, metrics: dict) -> None:
        if self.best_path:
            save_checkpoint(self.best_path, self.model, **self.details, metrics=metrics)
        else:
            self.best_weights = copy.deepcopy(self.model.state_dict())

    def _keep_last(self) -> None:
        save_checkpoint(
            self.last_path,
            self.model,
            **self.details,
            settings=self.settings,
            history=self.history.to_numpy().tolist(),
            optimizer=self.optimizer.state_dict(),
            schedule=self.schedule.state_dict(),
        )

    def best_model(self) -> nn.Module:
        """Put the best epoch's weights back into the network; → it."""
        weights = load_checkpoint(self.best_path)["state_dict"] if self.best_path else self.best_weights
        self.model.load_state_dict(weights)
        return self.model
