"""Photos inside the page: small, as data URIs."""

import base64
import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image

from utils.images import read_image


def photo_uri(path: Path, side: int) -> str:
    """Return a photo as a JPEG of at most `side` pixels a side, as a data URI; what else its file says is left out."""
    image = read_image(path)
    image.thumbnail((side, side))
    return data_uri(image, "JPEG", quality=82)


def data_uri(image: Image.Image, kind: str, **options) -> str:
    """Encode an image as a file of a kind that Pillow knows, as a data URI."""
    file = io.BytesIO()
    image.save(file, kind, optimize=True, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def pixels_sha256(image: Image.Image) -> str:
    """Hash an image's pixels, RGB with 8 bits a channel, row by row."""
    return hashlib.sha256(np.asarray(image).tobytes()).hexdigest()
