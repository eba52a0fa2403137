"""What EDA says is true of the data and the network at hand."""

import json

import numpy as np
import pandas as pd
from conftest import ROOT

from utils.eda.probes import provable_recall, separability
from utils.split import split_index, summary


def notebook_cells() -> list[dict]:
    return json.loads((ROOT / "EDA.ipynb").read_text(encoding="utf-8"))["cells"]


def test_prose_does_not_speak_of_one_data_set_or_network_whatever_the_setting_is():
    prose = " ".join("".join(cell["source"]) for cell in notebook_cells() if cell["cell_type"] == "markdown")
    assert "ConvNet" not in prose and "one fruit" not in prose and "data/train" not in prose


def test_main_line_is_short():
    """Fifteen code cells of some five lines, and a dozen lines of imports."""
    titles = ["".join(cell["source"]).startswith("# Further evidence") for cell in notebook_cells()]
    cells = [cell for cell in notebook_cells()[: titles.index(True)] if cell["cell_type"] == "code"]
    lengths = [len([line for line in cell["source"] if line.strip()]) for cell in cells]
    assert len(cells) <= 15 and sorted(lengths)[len(lengths) // 2] <= 5 and max(lengths) <= 16 and lengths[0] <= 12


def test_leaks_are_counted_beside_those_of_single_images_and_classes_that_had_to_be_cut_are_named():
    index = pd.DataFrame({"path": [f"{name}/{number:02d}.jpg" for name in "ab" for number in range(20)]})
    index["class"] = index["path"].str[0]
    index["group"] = index["class"] + (np.arange(40) // 4).astype(str)
    index.loc[index["class"] == "b", "group"] = "b"  # all of one object
    index["split"] = split_index(index)
    told = summary(index)
    assert told["series"] == ["b"] and told["groups"] == 6
    assert 0 < told["leaks"] < told["random_split_leaks"]
    assert sum(told["split"].values()) == 40


def test_worth_of_pretraining_is_told_beside_the_best_control_with_an_interval():
    labels = np.repeat([0, 1], 50)
    known = {"pretrained": 0.1, "colors": 0.1, "noise": 0.5}
    generator = np.random.default_rng(0)
    predicted = {}
    for name, errors in known.items():
        predictions = np.where(generator.random((3, 100)) < errors, 1 - labels, labels)
        predicted[name] = np.eye(2)[predictions]
    told = separability(predicted, labels, np.arange(100))
    gain = told["pretraining"]
    assert gain["control"] == "colors" and gain["ci95"][0] < gain["difference"] < gain["ci95"][1]
    assert gain["ci95"][0] < 0 < gain["ci95"][1], "equally good"
    assert told["probes"].keys() == known.keys() and told["macro_f1"] == told["probes"]["pretrained"]


def test_few_test_groups_prove_little():
    index = pd.DataFrame({"path": list("abcdefgh"), "class": list("xxxxxxyy"), "group": list("11223345")})
    table = provable_recall(index.assign(split="test"))
    assert list(table.loc["x", ["images", "groups"]]) == [6, 3]
    assert table.loc["x", "recall, by groups"] < table.loc["x", "recall, by images"] < 1
    assert table.loc["y", "recall, by groups"] == table.loc["y", "recall, by images"]
