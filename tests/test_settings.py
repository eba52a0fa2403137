"""Every setting of the notebooks has a kind, and what is of another kind is named with what it may be."""

import ast
import json

import pandas as pd
import pytest
from conftest import ROOT

from utils import config
from utils.config import InputError
from utils.split import minority_classes


def defaults() -> dict[str, object]:
    """Read the settings of all notebooks, as they are given."""
    values = {}
    for name in ("EDA", "train", "onnx_quant", "compare_models"):
        cells = json.loads((ROOT / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        (cell,) = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
        for statement in ast.parse("".join(cell["source"])).body:
            values[statement.targets[0].id] = ast.literal_eval(statement.value)
    return values


def test_every_setting_has_a_kind_that_its_default_fits():
    assert set(defaults()) == set(config.KINDS)
    config.check_settings(defaults() | {"OTHER": -1, "index": None})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("SEED", -1, "a whole number, 0 or more and at most 2147483648"),
        ("BATCH_SIZE", 0, "a whole number, 1 or more"),
        ("BATCH_SIZE", True, "a whole number, 1 or more"),
        ("FINE_TUNE_EPOCHS", 0.5, "a whole number, 0 or more, or None"),
        ("MARGIN", "x", "a number above 0 and at most 1"),
        ("MARGIN", 0, "a number above 0 and at most 1"),
        ("BUDGET_MS", "abc", "a number above 0, or None"),
        ("BUDGET_MS", float("nan"), "a number above 0, or None"),
        ("MORE_IMAGES", -5, "a whole number, 1 or more"),
        ("MINORITY", "cucumber", "a list, each of it text, or None"),
        ("BATCH_SIZES", (1, 0), "a list, each of it a whole number, 1 or more"),
        ("FOLDS", 2, "a whole number, 3 or more, or None"),
        ("ACCURACY", 95, "a number, 0 or more and at most 1"),
        ("NAME", 2024, "text"),
        ("NAME", None, "text"),
        ("MODELS", ["a.onnx"], "a dictionary"),
        ("AUGMENT", "some", "one of 'minority', 'none', 'all', 'class weights', 'oversampling', or None"),
        ("SPLIT", "mine", "one of 'given', 'ours', 'absent', or None"),
        ("TARGET", "phone", "one of 'any', 'here', 'arm64', 'openvino', 'web', 'tensorrt'"),
    ],
)
def test_settings_that_make_no_sense_are_named_with_what_they_may_be(name, value, expected):
    with pytest.raises(InputError) as error:
        config.check_settings(defaults() | {name: value})
    assert str(error.value) == f"{name} is {value!r}: it must be {expected}"


def test_all_of_them_are_named_at_once_and_what_makes_sense_passes():
    with pytest.raises(InputError, match="BATCH_SIZE is 0.*; SEED is -1"):
        config.check_settings(defaults() | {"SEED": -1, "BATCH_SIZE": 0})
    config.check_settings(
        {"BUDGET_MS": 2, "MINORITY": ["a"], "RUNTIMES": (), "FOLDS": 3, "RECALL_LOSS": 0, "ACCURACY": 1}
    )


def test_minority_that_is_no_class_is_named():
    labels = pd.Series(list("aaaab"))
    assert minority_classes(labels) == ["b"] and minority_classes(labels, ["a"]) == ["a"]
    with pytest.raises(InputError, match=r"MINORITY \['cucumber'\]: there are only a, b"):
        minority_classes(labels, ["cucumber"])
