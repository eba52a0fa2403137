"""INT8 recipes: what suits a CPU, and what is tried after it."""

import onnx
import pytest
from onnxruntime.quantization import CalibrationMethod, QuantType

from utils.onnx_quant.graph import stem
from utils.onnx_quant.recipes import LIBRARY_DEFAULT, candidate_recipes, type_recipes

CPUS = [
    ({"architecture": "x86_64", "vnni": True}, "U8S8 per-channel"),
    ({"architecture": "AMD64", "vnni": False}, "U8S8 per-channel reduce-range"),
    ({"architecture": "arm64", "vnni": False}, "S8S8 per-channel"),
]


@pytest.mark.parametrize(("cpu", "first"), CPUS)
def test_first_recipe_suits_the_cpu_and_the_librarys_default_is_among_them(net, cpu, first):
    recipes = candidate_recipes(cpu, net)
    assert type_recipes(cpu)[0].name == recipes[0].name == first
    assert LIBRARY_DEFAULT in recipes
    assert LIBRARY_DEFAULT.activation_type == QuantType.QInt8
    assert not LIBRARY_DEFAULT.per_channel and not LIBRARY_DEFAULT.correct_biases
    assert ("conv1", "clip1") in [recipe.nodes_to_exclude for recipe in recipes]


@pytest.mark.parametrize(("cpu", "first"), CPUS)
def test_second_stage_spares_the_most_sensitive_node_and_cuts_outliers_off(net, cpu, first):
    earlier, recipes = candidate_recipes(cpu, net), candidate_recipes(cpu, net, ["conv2", "gemm"])
    assert recipes[: len(earlier)] == earlier
    further = recipes[len(earlier) :]
    assert [recipe.nodes_to_exclude for recipe in further] == [("conv2",), (), ()]
    methods = [recipe.calibrate_method for recipe in further]
    assert methods == [CalibrationMethod.MinMax, CalibrationMethod.Percentile, CalibrationMethod.Entropy]
    assert further[0].name == f"{first}, conv2 in float"


def test_a_sensitive_stem_is_not_tried_twice(net):
    """The candidates that leave the whole stem in float know the answer already."""
    stem_names = [node.name for node in stem(onnx.load(net))]
    assert stem_names[0] == "conv1"
    for sensitive, expected in ((["conv1", "conv2"], ["conv2 in float"]), (["conv1"], [])):
        recipes = candidate_recipes(CPUS[0][0], net, sensitive)
        notes = [recipe.note for recipe in recipes if recipe.note not in ("", "stem in float")]
        assert notes == expected


@pytest.mark.parametrize(("cpu", "first"), CPUS)
def test_no_two_recipes_share_a_name(net, cpu, first):
    names = [recipe.name for recipe in candidate_recipes(cpu, net, ["conv2"])]
    assert len(set(names)) == len(names)
