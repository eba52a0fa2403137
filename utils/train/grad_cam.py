"""Where the network looked: Grad-CAM (Selvaraju et al. 2017), wrapped so that the model comes out as it went in."""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from scipy.stats import spearmanr
from torch import Tensor, nn

from utils.datasets import ImageDataset, make_loader, to_pixels
from utils.model import AllBlocks, predict, without_head

MIN_SIDE = 7  # of a map: a smaller one shows no place


def to_map(output: Tensor, channels_last: bool = False, prefix: int = 0) -> Tensor | None:
    """Lay features out as maps (N, C, H, W); None when they are no map.

    Networks have them as (N, C, H, W), as (N, H, W, C) if `channels_last`, or as tokens (N, prefix + H·W, C), where
    some tokens before those of the picture stand for none of its places.
    """
    if output.ndim == 4:
        return output.movedim(3, 1) if channels_last else output
    for skipped in (prefix, 0):
        side = math.isqrt(max(0, output.shape[1] - skipped))
        if output.ndim == 3 and side**2 == output.shape[1] - skipped:
            return output[:, skipped:].movedim(2, 1).unflatten(2, (side, side))
    return None


def cam_layer(model: AllBlocks, image: Tensor) -> tuple[nn.Module, Callable] | None:
    """Find the deepest layer whose map is at least 7×7, else the largest map, and how to lay it out; None without any.

    Candidates are the network's blocks and its last feature map. Of a transformer that predicts by one token, the last
    maps have no say in it: without a gradient, a map does not count.
    """
    prefix = getattr(without_head(model.body), "num_prefix_tokens", 0)
    layout = partial(to_map, channels_last=model.channels_last, prefix=prefix)
    blocks = [model.body.get_submodule(name) for name in model.blocks]
    best, best_side = None, 0
    for module, gradient in _gradients(model, image, [*blocks, model.last_map]).items():
        gradient = layout(gradient)
        if gradient is None or min(gradient.shape[2:]) < 2 or not gradient.any():
            continue
        side = min(MIN_SIDE, *gradient.shape[2:])
        if side >= best_side:  # of equals the deeper one
            best, best_side = (module, layout), side
    return best


def _gradients(network: nn.Module, image: Tensor, modules: Sequence[nn.Module]) -> dict[nn.Module, Tensor]:
    """Run a network on an image (1, 3, H, W); → its prediction's gradient at what modules return, as they run."""
    outputs: dict[nn.Module, Tensor] = {}

    def remember(module: nn.Module, _: tuple, output: object) -> None:
        if isinstance(output, Tensor):
            outputs[module] = output

    handles = [module.register_forward_hook(remember) for module in modules]
    try:
        prediction = network(image.clone().requires_grad_(True)).max()
    finally:
        for handle in handles:
            handle.remove()
    gradients = torch.autograd.grad(prediction, list(outputs.values()), allow_unused=True)
    return {module: gradient for module, gradient in zip(outputs, gradients, strict=True) if gradient is not None}


def _begin_here(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    """Let gradients end at what a module returns: below it, they take most of the time and are asked for by nobody."""
    return output.detach().requires_grad_().clone()  # what follows may overwrite a copy, but no leaf of the graph


def grad_cam(model: AllBlocks, images: Tensor, targets: Sequence[int]) -> np.ndarray:
    """Compute the heat (N, H, W) in [0, 1] that each image (N, 3, H, W) gives its target class.

    Nan, and a printed sentence, if the architecture has no map. The model keeps its mode and its gradients are cleared.
    Images may come from a network with frozen layers.
    """
    training = model.training
    images = images.to(next(model.parameters()).device)
    model.eval()
    try:
        layer = cam_layer(model, images[:1])
        if layer is None:
            print("Grad-CAM has no map for this architecture: its features have no place in the picture.")
            return np.full((len(images), *images.shape[2:]), np.nan, dtype=np.float32)
        begin = layer[0].register_forward_hook(_begin_here, prepend=True)
        cam = GradCAM(model, [layer[0]], layer[1])
        try:
            return cam(images, [ClassifierOutputTarget(int(target)) for target in targets])
        finally:
            cam.activations_and_grads.release()
            begin.remove()
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)


class Explanation(NamedTuple):
    """The heat (N, H, W) for the class that each image is taken for, that class (N,), and titles that name it."""

    heat: np.ndarray
    predicted: np.ndarray
    titles: list[str]


def explain(model: AllBlocks, dataset: ImageDataset, classes: Sequence[str]) -> Explanation:
    """Compute `grad_cam` of each image for the class that the model takes it for, one of `classes` by its position."""
    predicted = predict(model, make_loader(dataset))[0].argmax(axis=1)
    pairs = zip(dataset.index["class"], predicted, strict=True)
    titles = [f"{name}: “{classes[label]}”" for name, label in pairs]
    return Explanation(grad_cam(model, dataset.stack(), predicted), predicted, titles)


def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of two maps (N, H, W) each; → (N,), 0 where a map is flat."""
    pairs = zip(first.reshape(len(first), -1), second.reshape(len(second), -1), strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a flat map has no ranks
        return np.nan_to_num([spearmanr(*pair).statistic for pair in pairs])


def overlays(dataset: ImageDataset, heat: np.ndarray, preprocessing: dict) -> list[np.ndarray]:
    """Blend heat (N, H, W) over the images as the network sees them, none where it is nan; → uint8 (H, W, 3) each."""
    pictures = []
    for (image, _), heat_map in zip(dataset, heat, strict=True):
        pixels = to_pixels(image, preprocessing).astype(np.float32)
        known = np.isfinite(heat_map).all()
        pictures.append(show_cam_on_image(pixels, heat_map, use_rgb=True) if known else np.uint8(255 * pixels))
    return pictures
