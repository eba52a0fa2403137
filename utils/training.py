"""One epoch of training."""

import math

from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from utils.config import InputError
from utils.model import DEVICE


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
