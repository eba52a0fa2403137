"""Where the network looked: Grad-CAM (Selvaraju et al. 2017), wrapped so that the model comes out as it went in."""

import contextlib
import io
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.metrics.road import ROADCombined
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from scipy.stats import spearmanr
from torch import Tensor, nn

from utils.config import SEED
from utils.datasets import ImageDataset, make_loader, to_pixels
from utils.model import predict

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


def explain(model: nn.Module, dataset: ImageDataset) -> tuple[np.ndarray, np.ndarray]:
    """Compute the heat (N, H, W) that images give the class which the model takes them for, and that class (N,)."""
    answers = predict(model, make_loader(dataset, batch_size=64))[0].argmax(axis=1)
    return grad_cam(model, dataset.stack(), answers), answers


def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of two maps (N, H, W) each; → (N,), 0 where a map is flat."""
    pairs = zip(first.reshape(len(first), -1), second.reshape(len(second), -1), strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a flat map has no ranks
        return np.nan_to_num([spearmanr(*pair).statistic for pair in pairs])


def border_share(heat: np.ndarray, width: float = 0.1) -> np.ndarray:
    """Share of the heat (N, H, W) that lies on the outer `width` of each side, where the object seldom is; → (N,)."""
    rows = max(1, round(width * heat.shape[1]))
    columns = max(1, round(width * heat.shape[2]))
    inner = heat[:, rows:-rows, columns:-columns].sum(axis=(1, 2))
    total = heat.sum(axis=(1, 2))
    return 1 - np.divide(inner, total, out=np.ones_like(inner), where=total > 0)


def faithfulness(model: nn.Module, images: Tensor, heat: np.ndarray, targets: Sequence[int]) -> np.ndarray:
    """ROAD: does the target's probability fall more when the hot pixels go than when the cold ones go? → (N,).

    Above 0 the map points at what the network uses. Removed pixels are filled in from their surroundings (Rong et al.
    2022, arXiv 2202.00449); the mean over removing three and seven tenths.
    """
    classify = nn.Sequential(model.eval(), nn.Softmax(dim=1))
    metric = ROADCombined(percentiles=[30, 70])
    with np.errstate(all="ignore"), contextlib.redirect_stderr(io.StringIO()), torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)  # what is filled in gets a little noise
        return metric(images, heat, [ClassifierOutputTarget(int(target)) for target in targets], classify)


def overlays(dataset: ImageDataset, heat: np.ndarray, preprocessing: dict) -> list[np.ndarray]:
    """Blend heat (N, H, W) over the images as the network sees them; → uint8 (H, W, 3) each."""
    pictures = []
    for (image, _), heat_map in zip(dataset, heat, strict=True):
        pixels = to_pixels(image, preprocessing).astype(np.float32)
        pictures.append(show_cam_on_image(pixels, heat_map, use_rgb=True))
    return pictures
