"""Mild faults that photos have in practice, to see whether INT8 bears them as fp32 does.

After Hendrycks and Dietterich 2019 (arXiv 1903.12261), about as mild as their mildest, and the same for any size.
"""

import io
from collections.abc import Callable

from PIL import Image, ImageChops, ImageEnhance, ImageFilter


def darker(image: Image.Image) -> Image.Image:
    """Take a quarter of the light away."""
    return ImageEnhance.Brightness(image).enhance(0.75)


def brighter(image: Image.Image) -> Image.Image:
    """Add a quarter of the light."""
    return ImageEnhance.Brightness(image).enhance(1.25)


def blur(image: Image.Image) -> Image.Image:
    """Put the image out of focus, by a hundredth of its shorter side."""
    return image.filter(ImageFilter.GaussianBlur(min(image.size) / 100))


def jpeg(image: Image.Image) -> Image.Image:
    """Store the image as a JPEG of quality 30 and read it back."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=30)
    return Image.open(buffer).convert("RGB")


def shift(image: Image.Image) -> Image.Image:
    """Move the image right and down by a twentieth of its sides; the edges' pixels fill the gap."""
    right, down = image.width // 20, image.height // 20
    moved = ImageChops.offset(image, right, down)
    moved.paste(image.crop((0, 0, 1, image.height)).resize((max(right, 1), image.height)), (0, 0))
    moved.paste(moved.crop((0, down, image.width, down + 1)).resize((image.width, max(down, 1))), (0, 0))
    return moved


CORRUPTIONS: dict[str, Callable[[Image.Image], Image.Image] | None] = {
    "none": None,
    "darker": darker,
    "brighter": brighter,
    "blur": blur,
    "JPEG": jpeg,
    "shift": shift,
}
