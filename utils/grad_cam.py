"""Where the network looked: Grad-CAM (Selvaraju et al. 2017), wrapped so that the model comes out as it went in."""

from collections.abc import Sequence

import numpy as np
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

MIN_SIDE = 7


@torch.no_grad()
def cam_layer(model: nn.Module, images: Tensor) -> nn.Module:
    """Find the deepest layer whose map is still at least 7×7; the very last one may have shrunk to 2×2."""
    maps: list[nn.Module] = []

    def remember(module: nn.Module, _: tuple, output: Tensor) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[-2:]) >= MIN_SIDE:
            maps.append(module)

    leaves = [module for module in model.modules() if not list(module.children())]
    handles = [leaf.register_forward_hook(remember) for leaf in leaves]
    try:
        model.eval()(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    return maps[-1]


def grad_cam(model: nn.Module, images: Tensor, targets: Sequence[int]) -> np.ndarray:
    """Compute the heat (N, H, W) in [0, 1] that each image (N, 3, H, W) gives its target class.

    The model keeps its mode and its gradients are cleared. Images may come from a network with frozen layers.
    """
    training = model.training
    device = next(model.parameters()).device
    images = images.to(device)
    cam = GradCAM(model.eval(), [cam_layer(model, images)])
    try:
        # a frozen network has no other input that asks for gradients
        return cam(images.clone().requires_grad_(True), [ClassifierOutputTarget(int(target)) for target in targets])
    finally:
        cam.activations_and_grads.release()
        model.zero_grad(set_to_none=True)
        model.train(training)


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Blend heat (H, W) over an image (H, W, 3) in [0, 1]; returns uint8."""
    return show_cam_on_image(image.astype(np.float32), heat, use_rgb=True)
