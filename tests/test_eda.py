"""What EDA says is true of the data and the network at hand."""

import json

import pytest
from conftest import ROOT

from utils.eda.clusters import cluster_counts
from utils.eda.findings import describe_leaks, describe_shortcuts


def test_prose_does_not_speak_of_one_network_whatever_the_setting_is():
    notebook = json.loads((ROOT / "EDA.ipynb").read_text(encoding="utf-8"))
    prose = " ".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    assert "ConvNet" not in prose and "five fruits" not in prose


@pytest.mark.parametrize(
    ("arch", "classes", "numbers"), [("conv_net", 3, [3, 5]), ("conv_net", 5, [5]), ("efficientnet_lite0", 3, [3])]
)
def test_five_clusters_are_asked_of_the_network_that_knows_five_fruits_alone(arch, classes, numbers):
    reasons = cluster_counts(arch, classes)
    assert list(reasons) == numbers
    assert "class" in reasons[classes]
    assert any("pretrained" in reason for reason in reasons.values()) == (numbers == [3, 5])


def test_classes_that_had_to_be_cut_are_named():
    assert "**0** here, 459 in a random split." in describe_leaks(0, 459, [])
    assert "object" not in describe_leaks(0, 459, [])
    warned = describe_leaks(7332, 7359, ["apple", "cherry"])
    assert "apple, cherry: fewer than three groups" in warned and "nothing about another object" in warned


def test_shortcuts_are_a_warning_and_none_is_said_to_be_none():
    warned = describe_shortcuts(["border pixels", "mean color"])
    assert warned.startswith("**Warning") and "border pixels, mean color" in warned
    assert "no shortcut" in describe_shortcuts([])
