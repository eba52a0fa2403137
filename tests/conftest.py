import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from offline import Done, run_offline
from PIL import Image

import utils  # noqa: F401  (before a test imports onnxruntime, whose telemetry it switches off)

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
# settings that leave out repetition and other networks, and nothing else
SETTINGS = ["ARCH=conv_net", "GROUPS=", "NETWORKS=None", "FOLDS=3", "REPEATS=1", "FOLD_NETWORKS=1", "ROUNDS=4"]
SETTINGS += ["BATCH_SIZES=(1, 4)"]
QUICK = [word for setting in SETTINGS for word in ("-p", setting)]
LEFT_BEHIND = shutil.ignore_patterns(".*", "__pycache__", "runs", "checkpoints", "tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the browser's tests out where there is no browser."""
    if not CHROMIUM and (browsing := [item for item in items if item.get_closest_marker("browser")]):
        items[:] = [item for item in items if item not in browsing]
        config.hook.pytest_deselected(items=browsing)


def pytest_terminal_summary(terminalreporter) -> None:
    """Say so, in a line."""
    if not CHROMIUM:
        terminalreporter.write_line("No Chromium on PATH: the tests in a browser (-m browser) were left out")


def copy_project(target: Path) -> Path:
    """Copy what a clone holds: no environment, no results."""
    shutil.copytree(ROOT, target, ignore=LEFT_BEHIND)
    (target / "checkpoints").mkdir()
    for name in ("conv_net.pth", "conv_net.pth.sha256"):
        shutil.copy(ROOT / "checkpoints" / name, target / "checkpoints")
    return target


def run_py(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Call the project's run.py as a user would, from another folder, in the interpreter at hand."""
    command = [sys.executable, project / "run.py", "--no-venv", *arguments]
    return subprocess.run(
        command, cwd=project.parent, env=os.environ | environment, capture_output=True, encoding="utf-8"
    )


def read_report(project: Path, name: str = "") -> dict:
    return json.loads((project / "checkpoints" / name / "report.json").read_text(encoding="utf-8"))


def fingerprint(folder: Path) -> dict[str, str]:
    """Hash every file of a folder, by name."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def photo(generator: np.random.Generator, color: tuple[int, int, int]) -> Image.Image:
    """Draw a blob of about this color on white, 60×60."""
    y, x = np.mgrid[:60, :60]
    center, radius = generator.uniform(24, 36, 2), generator.uniform(14, 24)
    inside = np.hypot(y - center[0], x - center[1]) < radius
    noise = generator.normal(0, 25, (60, 60, 3))
    pixels = np.where(inside[..., None], np.array(color) + noise, 255)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def fill_folder(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Make a folder of images per class; each class has a color of its own."""
    generator = np.random.default_rng(seed)
    colors = [(200, 40, 40), (60, 160, 60), (60, 60, 190), (190, 170, 40)]
    for color, (name, count) in zip(colors, counts.items(), strict=False):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            photo(generator, color).save(folder / name / f"{number:03d}.jpg", quality=92)
    return folder


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in a path with Hangul and a space."""
    return copy_project(tmp_path_factory.mktemp("내 문서") / "과일 분류")


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of someone who is new."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def embedded(project: Path, home: Path) -> Done:
    """What `python run.py` does with the embedded fruit, with an empty home and no network."""
    done = run_offline([sys.executable, project / "run.py", "--no-venv"], home, project.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="session")
def browser():
    """Chromium, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network, prepared for quantization, in a folder with a Hangul name."""
    from nets import residual_net

    from utils.onnx_quant.graph import prepare

    folder = tmp_path_factory.mktemp("모델")
    prepare(residual_net(folder / "net.onnx"), folder / "prepared.onnx")
    return folder / "prepared.onnx"


@pytest.fixture(scope="session")
def conv_net():
    """The default network with random weights, in eval mode, as train.ipynb ships it."""
    from nets import all_blocks

    return all_blocks()


@pytest.fixture(scope="session")
def conv_net_file(conv_net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its ONNX file, as onnx_quant.ipynb exports it."""
    from nets import CLASSES, PREPROCESSING, to_onnx

    folder = tmp_path_factory.mktemp("모델 파일")
    return to_onnx(conv_net, folder / "conv_net.onnx", classes=CLASSES, preprocessing=PREPROCESSING)


@pytest.fixture(scope="session")
def prepared_conv_net(conv_net_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, prepared for quantization."""
    from utils.onnx_quant.graph import prepare

    prepared = tmp_path_factory.mktemp("prepared") / "prepared.onnx"
    prepare(conv_net_file, prepared)
    return prepared
