"""Any folder of two classes or more, with three images or more in each, goes through the notebooks."""

import json
import linecache
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import ROOT
from IPython.display import display
from PIL import Image

from utils import config, model

assert model.CHECKPOINTS == config.CHECKPOINTS  # imported before that is another folder: it finds conv_net.pth there
NOTEBOOKS = ["EDA", "train", "onnx_quant", "compare_models"]
QUICK = {"ARCH": "conv_net", "GROUPS": "", "NETWORKS": None, "FINE_TUNE_EPOCHS": 1, "FOLDS": 3, "REPEATS": 1}
QUICK |= {"FOLD_NETWORKS": 1, "ROUNDS": 2, "BATCH_SIZES": (1,), "RUNTIMES": []}
EMBEDDED, SHARED = ROOT / "data" / "train", ROOT.parent / "shared" / "data"  # the second is on some machines only
Picture = Callable[[np.random.Generator, int], np.ndarray]  # by random numbers and by number within its class


def save(folder: Path, counts: dict[str, int], picture: Picture) -> None:
    """Make a folder per class with as many pictures, without any loss."""
    generator = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(picture(generator, number)).save(folder / name / f"{number:03d}.png")


def soft(generator: np.random.Generator, side: int = 48) -> np.ndarray:
    """Draw soft random colors, like no other picture's."""
    colors = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(colors).resize((side, side), Image.Resampling.BICUBIC))


def draw(folder: Path, source: Path, per_class: int) -> None:
    """Copy every so many images of each class, by links."""
    for class_folder in sorted(path for path in source.iterdir() if path.is_dir()):
        (folder / class_folder.name).mkdir(parents=True)
        files = sorted(class_folder.iterdir())
        for path in files[:: max(1, len(files) // per_class)][:per_class]:
            (folder / class_folder.name / path.name).symlink_to(path)


def no_two_alike(folder: Path) -> None:
    save(folder, {"a": 9, "b": 8, "c": 7}, lambda generator, _: soft(generator))


def all_alike(folder: Path) -> None:
    save(folder, {"a": 6, "b": 6}, lambda *_: np.full((40, 40, 3), 90, dtype=np.uint8))


def flat(folder: Path) -> None:
    save(folder, {"a": 6, "b": 5}, lambda _, number: np.full((40, 40, 3), 40 * number, dtype=np.uint8))


def dark(folder: Path) -> None:
    save(folder, {"a": 6, "b": 9}, lambda generator, _: generator.integers(0, 4, (40, 40, 3), dtype=np.uint8))


def grey(folder: Path) -> None:
    save(folder, {"a": 8, "b": 4}, lambda generator, _: soft(generator)[..., 0])


def tiny(folder: Path) -> None:
    save(folder, {"a": 6, "b": 6, "c": 6}, lambda generator, _: soft(generator, side=8))


def one_pixel_and_very_wide(folder: Path) -> None:
    def picture(generator: np.random.Generator, number: int) -> np.ndarray:
        return generator.integers(0, 256, ((1, 1, 3), (1, 400, 3), (400, 2, 3))[number % 3], dtype=np.uint8)

    save(folder, {"a": 6, "b": 6}, picture)


def one_group_per_class(folder: Path) -> None:
    for name in ("apple", "cherry"):
        (folder / name).mkdir(parents=True)
        for path in sorted((EMBEDDED / name).glob(f"{name}_00_*")):
            (folder / name / path.name).symlink_to(path)


def three_each(folder: Path) -> None:
    save(folder, {"a": 3, "b": 3}, lambda generator, _: soft(generator))


def three_beside_three_hundred(folder: Path) -> None:
    save(folder, {"few": 3, "many": 300}, lambda generator, _: soft(generator, side=16))


def names_like_numbers(folder: Path) -> None:
    save(folder, {"-1": 4, "01": 5, "=2+2": 4, "$a$": 4, "nan": 4}, lambda generator, _: soft(generator))


def a_hundred_and_twenty_classes(folder: Path) -> None:
    save(folder, {f"class {number}": 4 for number in range(120)}, lambda generator, _: soft(generator, side=16))


def few_fruit(folder: Path) -> None:
    draw(folder, EMBEDDED, 5)


def hand_signs(folder: Path) -> None:
    draw(folder, SHARED / "sign_digits", 4)


def defects(folder: Path) -> None:
    draw(folder, SHARED / "defects6", 6)


FOLDERS = [no_two_alike, all_alike, flat, dark, grey, tiny, one_pixel_and_very_wide, one_group_per_class, three_each]
FOLDERS += [three_beside_three_hundred, names_like_numbers, a_hundred_and_twenty_classes, few_fruit]
FOLDERS += [hand_signs, defects] if SHARED.is_dir() else []
THROUGH_ALL = [no_two_alike, flat, all_alike, grey, one_group_per_class, three_each, few_fruit]


def run_notebook(name: str, settings: dict) -> None:
    """Execute a notebook's cells in this process, with settings in place of its own."""
    names = {"display": display}
    for position, cell in enumerate(json.loads((ROOT / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] == "code":
            source, file = "".join(cell["source"]), f"<{name}.ipynb, cell {position}>"
            linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file  # for inspect.getsource
            exec(compile(source, file, "exec"), names)
            plt.close("all")
            if "parameters" in cell["metadata"].get("tags", []):
                names.update({key: value for key, value in settings.items() if key in names})


@pytest.mark.parametrize("make", FOLDERS, ids=lambda make: make.__name__)
def test_folder_goes_through(make, tmp_path, monkeypatch):
    matplotlib.use("agg")
    monkeypatch.setattr(config, "CHECKPOINTS", tmp_path / "checkpoints")
    make(tmp_path / "photos")
    settings = QUICK | {"DATA": str(tmp_path / "photos"), "NAME": "small"}
    if make is few_fruit:
        settings["ARCH"] = None  # it is then chosen
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_notebook("EDA", settings)
    kinds = UserWarning | RuntimeWarning
    assert not {str(warning.message) for warning in caught if issubclass(warning.category, kinds)}
    for name in NOTEBOOKS[1:] if make in THROUGH_ALL else []:
        run_notebook(name, settings)
