"""The page in each browser engine that is installed: its layout, and `predict`'s predictions on photos of all kinds.

`SCREENSHOTS=folder` keeps a picture of the page in each engine at three widths.
"""

import base64
import io
import os
import re
import struct
from pathlib import Path

import engines
import numpy as np
import pytest
from conftest import CHROMIUM, ROOT
from PIL import Image, ImageCms
from test_page import page_file  # noqa: F401

from utils.images import ORIENTATION, read_image
from utils.predict import Classifier
from utils.report import shipped_file

INSTALLED = {"chromium": CHROMIUM, "firefox": engines.FIREFOX, "webkit": engines.WEBKIT}
WIDTHS = (390, 900, 1280)
READY = "() => window.ready.then(() => 'ready', error => error.message)"
CLASSIFY = "text => classify(new Blob([Uint8Array.from(atob(text), letter => letter.charCodeAt(0))]))"
PIXELS = """async text => {
    const photo = await decode(new Blob([Uint8Array.from(atob(text), letter => letter.charCodeAt(0))]));
    return [photo.canvas.width, photo.canvas.height, Array.from(photo.rgb)];
}"""
LAYOUT = """() => {
    const dots = document.querySelector('.verdict svg').getBoundingClientRect();
    const text = document.querySelector('.verdict h2').getBoundingClientRect();
    return {scroll: document.documentElement.scrollWidth, window: innerWidth, side: dots.width, height: dots.height,
            apart: dots.right <= text.left || dots.bottom <= text.top};
}"""
PRIMARIES = {  # XYZ of red, green and blue, adapted to D50, as in the profiles of phones and cameras
    "display p3": [(0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)],
    "adobe rgb": [(0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446)],
}

pytestmark = pytest.mark.browser


class Chromium:
    """Playwright's tab, with the few calls that the others have."""

    def __init__(self, browser):
        self.tab = browser.new_context(offline=True).new_page()

    def open(self, path: Path, width: int, height: int = 900) -> None:
        self.tab.set_viewport_size({"width": width, "height": height})
        self.tab.goto(path.as_uri())

    def evaluate(self, function: str, *arguments):
        return self.tab.evaluate(function, *arguments)

    def screenshot(self) -> bytes:
        return self.tab.screenshot()


@pytest.fixture(scope="module", params=[name for name, program in INSTALLED.items() if program])
def engine(request, tmp_path_factory):
    """A tab of one engine after the other."""
    if request.param == "chromium":
        yield request.param, Chromium(request.getfixturevalue("browser"))
        return
    with engines.started(request.param, tmp_path_factory.mktemp(request.param)) as tab:
        yield request.param, tab


def profile(primaries: list[tuple[float, float, float]]) -> bytes:
    """Make an ICC profile like sRGB's, with other primaries and another name."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for number in range(struct.unpack_from(">I", content, 128)[0]):
        tag, start = struct.unpack_from(">4sI", content, 132 + 12 * number)
        if tag in (b"rXYZ", b"gXYZ", b"bXYZ"):
            values = primaries["rgb".index(chr(tag[0]))]
            struct.pack_into(">3i", content, start + 8, *(round(value * 65536) for value in values))
    return bytes(content).replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Path]:
    """Fruit turned by EXIF in all formats, and in the colors of other profiles."""
    folder = tmp_path_factory.mktemp("photos")
    fruit = sorted((ROOT / "data" / "train").glob("*/*.jpg"))
    for number, turn in enumerate(range(1, 9)):
        exif = Image.Exif()
        exif[ORIENTATION] = turn
        picture = Image.open(fruit[number * 35]).resize((90, 60))
        for kind in ("jpeg", "png", "webp", "avif"):
            picture.save(folder / f"turned_{turn}.{kind}", exif=exif)
    for name, primaries in PRIMARIES.items():
        for number in range(5):
            for kind in ("jpeg", "png", "webp"):
                path = folder / f"{name}_{number}.{kind}"
                Image.open(fruit[number * 60]).save(path, icc_profile=profile(primaries))
    return sorted(folder.iterdir())


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def test_layout_fits_and_the_model_is_ready(engine, page_file):  # noqa: F811
    name, tab = engine
    for width in WIDTHS:
        tab.open(page_file, width)
        assert tab.evaluate(READY) == "ready"
        found = tab.evaluate(LAYOUT)
        assert found["scroll"] <= found["window"]
        assert 100 < found["side"] < 200 and found["height"] == pytest.approx(found["side"], abs=1)
        assert found["apart"]
        if "SCREENSHOTS" in os.environ:
            (Path(os.environ["SCREENSHOTS"]) / f"{name}_{width}.png").write_bytes(tab.screenshot())


def test_predictions_are_those_of_predict_however_a_photo_is_turned_and_colored(engine, page_file, project, photos):  # noqa: F811
    name, tab = engine
    tab.open(page_file, 1280)
    assert tab.evaluate(READY) == "ready"
    classifier = Classifier(shipped_file(project / "checkpoints"))
    largest = 0
    for path in photos:
        if name == "webkit" and path.suffix == ".webp" and not path.name.startswith("turned"):
            continue  # WebKitGTK does not read the profile of a WebP
        width, height, pixels = tab.evaluate(PIXELS, encoded(path))
        expected = np.asarray(read_image(path)).astype(int)
        moved = np.abs(np.array(pixels).reshape(height, width, 3) - expected)
        # decoders of lossy formats, and programs that convert colors, round otherwise
        assert moved.mean() < 2, path.name
        found, expected = tab.evaluate(CLASSIFY, encoded(path)), classifier.probabilities(path)
        assert found["label"] == classifier.details["classes"][expected.argmax()], path.name
        largest = max(largest, np.abs(np.array(found["probabilities"]) - expected).max())
    print(f"{name}: probabilities differ by up to {largest:.4f}")
    assert largest < 0.05


def test_photo_larger_than_a_canvas_is_never_taken_for_an_empty_picture(engine, page_file):  # noqa: F811
    """Engines draw some 32,767 or 65,535 pixels a side, or what memory holds, and leave a larger canvas empty."""
    _, tab = engine
    tab.open(page_file, 1280)
    assert tab.evaluate(READY) == "ready"
    file = io.BytesIO()
    Image.new("L", (70_000, 8), 128).save(file, "PNG")
    try:
        _, _, pixels = tab.evaluate(PIXELS, base64.b64encode(file.getvalue()).decode())
    except Exception as error:
        assert re.search("larger than this browser can draw|could not be decoded|cannot be decoded", str(error)), error
    else:
        assert set(pixels) == {128}
