"""Files damaged at random: an answer or our own error, never anything else. FUZZ=10000 tries more of them."""

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from utils.compare_models.predictor import Predictor
from utils.config import InputError
from utils.images import read_image
from utils.model import load_model

TRIES = int(os.environ.get("FUZZ", 300))
FORMATS = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "TIFF": "tif", "WEBP": "webp", "BMP": "bmp"}


def damage(content: bytes, generator: np.random.Generator) -> bytes:
    """Flip, cut, repeat or overwrite; the front, where formats are decided, is hit as often as all the rest."""
    data = bytearray(content)
    for _ in range(generator.integers(1, 6)):
        start = int(generator.integers(min(len(data), 200) if generator.random() < 0.5 else len(data)))
        length = int(generator.integers(1, 40))
        kind = generator.integers(4)
        if kind == 0:
            data[start] ^= 1 << int(generator.integers(8))
        elif kind == 1:
            data[start : start + length] = generator.bytes(length)
        elif kind == 2:
            data[start:start] = data[start : start + length]
        elif len(data) > 2 * length:
            del data[start : start + length]
        if not data:
            break
    return bytes(data)


def survive(content: bytes, path: Path, read, seed: int) -> int:
    """Read damaged copies; → how many were refused."""
    generator, refused = np.random.default_rng(seed), 0
    for _ in range(TRIES):
        path.write_bytes(damage(content, generator))
        try:
            read(path)
        except InputError as error:
            assert path.name in str(error)
            refused += 1
    return refused


@pytest.mark.parametrize(("kind", "extension"), FORMATS.items())
def test_images(tmp_path, kind, extension):
    path = tmp_path / f"photo.{extension}"
    Image.open(ROOT / "data" / "train" / "apple" / "apple_05_02.jpg").resize((40, 40)).save(path, kind)

    def read(path: Path) -> None:
        assert read_image(path).mode == "RGB"

    assert survive(path.read_bytes(), path, read, seed=0)


def test_checkpoints(tmp_path):
    content = (ROOT / "checkpoints" / "conv_net.pth").read_bytes()
    assert survive(content, tmp_path / "fine_tuned_conv_net.pth", load_model, seed=1)


def test_onnx_files(project, embedded, tmp_path):
    content = (project / "checkpoints" / "conv_net_int8.onnx").read_bytes()

    def read(path: Path) -> None:
        Predictor(path)(np.zeros((2, 3, 64, 64), np.float32))

    assert survive(content, tmp_path / "conv_net_int8.onnx", read, seed=2)
