"""Recipes, calibration and the search; bugs of ONNX Runtime that we work around are pinned."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from nets import ArrayReader, residual_net, to_int8
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import create_calibrator, load_tensors_data

from utils.files import remembered
from utils.model import ConvNet
from utils.onnx_quant.calibration import calibrate
from utils.onnx_quant.onnx_file import export_onnx
from utils.onnx_quant.graph import keep_float, overflow_share, prepare, stem
from utils.onnx_quant.recipe_search import choose, rank_sensitivity, score, sqnr_db, time_models, try_draws, try_recipes
from utils.onnx_quant.recipes import candidate_recipes, type_recipes
from utils.session import run_model

IMAGES = np.random.default_rng(0).normal(size=(22, 3, 16, 16)).astype(np.float32)
X86 = {"architecture": "x86_64", "vnni": False}


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    folder = tmp_path_factory.mktemp("모델")
    prepare(residual_net(folder / "net.onnx"), folder / "prepared.onnx")
    return folder / "prepared.onnx"


@pytest.fixture(scope="module")
def conv_net(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("net") / "conv_net.onnx"
    export_onnx(ConvNet(3), 64, path)
    prepare(path, path.with_name("prepared.onnx"))
    return path


def quantize(net, target, *, correct=False, note="", **recipe):
    to_int8(net, target, IMAGES, **recipe)
    keep_float(target, recipe.get("nodes_to_exclude", []))


def ranges(path) -> dict[str, tuple[float, float]]:
    return {
        name: tuple(float(each.item()) for each in data.range_value) for name, data in load_tensors_data(path).items()
    }


# --- types


@pytest.mark.parametrize(
    ("cpu", "first"),
    [
        ({"architecture": "x86_64", "vnni": True}, "U8S8 per-channel"),
        ({"architecture": "AMD64", "vnni": False}, "U8S8 per-channel reduce-range"),
        ({"architecture": "arm64", "vnni": False}, "S8S8 per-channel"),
    ],
)
def test_first_recipe_suits_the_cpu_and_the_default_is_last(net, cpu, first):
    recipes = candidate_recipes(cpu, net, ["conv2"])
    assert next(iter(type_recipes(cpu))) == next(iter(recipes)) == first
    default = list(recipes.values())[-1]
    assert default["activation_type"] == default["weight_type"] == QuantType.QInt8
    assert not default["per_channel"] and not default["correct"]
    assert any(recipe["nodes_to_exclude"] == ["conv2"] for recipe in recipes.values())
    assert any(recipe["nodes_to_exclude"] == ["conv1", "clip1"] for recipe in recipes.values())


@pytest.mark.parametrize(("weight", "share"), [(64, 0.0), (65, 1.0), (127, 1.0)])
def test_overflow_is_foreseen(tmp_path, weight, share):
    """Two products of 255 and 65 exceed 16 bits, of 255 and 64 they do not."""
    for sign, expected in ((1, share), (-1, share), (None, 0.0)):
        weights = np.full((4, 6, 3, 3), weight, np.int8) * np.int8(sign or 1)
        if sign is None:
            weights[:, 1::2] *= -1  # opposite signs cancel
        tensors = [numpy_helper.from_array(weights, "w")]
        onnx.save(helper.make_model(helper.make_graph([], "net", [], [], tensors)), tmp_path / "net.onnx")
        assert overflow_share(tmp_path / "net.onnx") == expected


def test_seven_bit_weights_cannot_overflow(net, tmp_path):
    quantize(net, tmp_path / "8.onnx", reduce_range=False)
    quantize(net, tmp_path / "7.onnx", reduce_range=True)
    assert overflow_share(tmp_path / "8.onnx") > 0 == overflow_share(tmp_path / "7.onnx")


# --- preparation


def test_preparation_keeps_the_answers_and_works_channels_last(conv_net):
    images = np.random.default_rng(0).normal(size=(5, 3, 64, 64)).astype(np.float32)
    prepared = conv_net.with_name("prepared.onnx")
    np.testing.assert_allclose(run_model(prepared, images), run_model(conv_net, images), atol=1e-5)
    names = [node.op_type for node in onnx.load(prepared).graph.node]
    assert names[-3:] == ["Transpose", "Reshape", "Gemm"]
    assert [node.op_type for node in stem(onnx.load(prepared))] == ["Conv", "Sigmoid", "Mul", "MaxPool", "Clip"]


def test_float_stem_is_pooled_before_it_is_quantized(conv_net, tmp_path):
    """ONNX Runtime would swap the two, which costs more than INT8 gains."""
    import onnxruntime

    images = np.random.default_rng(0).normal(size=(8, 3, 64, 64)).astype(np.float32)
    prepared = conv_net.with_name("prepared.onnx")
    excluded = [node.name for node in stem(onnx.load(prepared))]
    to_int8(prepared, tmp_path / "int8.onnx", images, nodes_to_exclude=excluded)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(tmp_path / "int8.onnx", options, providers=["CPUExecutionProvider"])
    order = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert order.index("MaxPool") < order.index("QuantizeLinear")
    assert "Clip" not in order


def test_many_at_once_do_not_disturb_each_other(conv_net, tmp_path):
    images = np.random.default_rng(0).normal(size=(8, 3, 64, 64)).astype(np.float32)
    before = sorted(conv_net.parent.iterdir())

    def one(number):
        target = tmp_path / f"{number}.onnx"
        prepare(conv_net, tmp_path / f"prepared{number}.onnx")
        kept = calibrate(conv_net, tmp_path, ArrayReader(images), CalibrationMethod.MinMax)
        to_int8(tmp_path / f"prepared{number}.onnx", target, images)
        return kept.read_bytes(), target.read_bytes()

    with ThreadPoolExecutor(4) as pool:
        results = set(pool.map(one, range(4)))
    assert len(results) == 1
    assert sorted(conv_net.parent.iterdir()) == before


# --- calibration


def test_ranges_are_those_of_all_images_whatever_the_batch(net, tmp_path):
    images = IMAGES.copy()
    images[0, 0, 0, 0], images[-1, 1, 2, 3] = -50, 60  # in the first and in the short last batch
    found = [
        ranges(calibrate(net, tmp_path, ArrayReader(images, size), CalibrationMethod.MinMax)) for size in (1, 4, 22)
    ]
    assert found[0]["input"] == (-50, 60)
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        np.testing.assert_allclose([other[name] for name in other], [found[0][name] for name in other], rtol=1e-4)


def test_percentile_cuts_a_few_outliers_off(net, tmp_path):
    images = np.resize(IMAGES, (400, *IMAGES.shape[1:]))
    images[3, 0, 0, 0] = 50  # one of 307,200 values, more than 99.999 % leave
    _, high = ranges(calibrate(net, tmp_path, ArrayReader(images, 64), CalibrationMethod.Percentile))["input"]
    assert IMAGES.max() - 1 < high < 10


@pytest.mark.parametrize("method", [CalibrationMethod.Percentile, CalibrationMethod.Entropy])
def test_short_last_batch_does_no_harm(net, tmp_path, method):
    assert len(IMAGES) % 4
    low, high = ranges(calibrate(net, tmp_path, ArrayReader(IMAGES, 4), method))["input"]
    assert IMAGES.min() <= low < -2 and 2 < high <= IMAGES.max()


def test_reader_is_read_from_its_beginning(net, tmp_path):
    reader = ArrayReader(IMAGES)
    first = ranges(calibrate(net, tmp_path, reader, CalibrationMethod.MinMax))
    reader.get_next()
    assert ranges(calibrate(net, tmp_path, reader, CalibrationMethod.MinMax)) == first


def collect(net, tmp_path, images, method=CalibrationMethod.MinMax, **options):
    calibrator = create_calibrator(
        net, augmented_model_path=str(tmp_path / "augmented.onnx"), calibrate_method=method, extra_options=options
    )
    calibrator.collect_data(ArrayReader(images, 4))
    return calibrator.compute_data()["input"].range_value


def test_onnxruntime_still_drops_data_with_max_intermediate_outputs(net, tmp_path):
    """When this fails the bug (onnxruntime#32577) is mended, and the option may be used."""
    images = IMAGES.copy()
    images[0, 0, 0, 0] = 1000  # in the first batch, which is dropped
    assert collect(net, tmp_path, images)[1] == 1000
    assert collect(net, tmp_path, images, max_intermediate_outputs=4)[1] < 1000


@pytest.mark.parametrize("method", [CalibrationMethod.Percentile, CalibrationMethod.Entropy])
def test_onnxruntime_still_stumbles_over_a_short_last_batch(net, tmp_path, method):
    """When this fails the bug (onnxruntime#18792) is mended, and `calibrate` may hand over more than one batch."""
    with pytest.raises(ValueError, match="inhomogeneous"):
        collect(net, tmp_path, IMAGES, method)


@pytest.fixture(scope="module")
def coarse(net, tmp_path_factory):
    """A net with one huge weight in conv3: a single scale for all channels leaves the other weights a step or two."""
    model = onnx.load(net)
    (weight,) = [tensor for tensor in model.graph.initializer if tensor.name == "w3"]
    values = numpy_helper.to_array(weight).copy()
    values[0, 0] = 60
    weight.CopyFrom(numpy_helper.from_array(values, "w3"))
    path = tmp_path_factory.mktemp("coarse") / "net.onnx"
    onnx.save(model, path)
    return path


def without_bias(source, target, layer):
    model = onnx.load(source)
    (node,) = [node for node in model.graph.node if node.name == layer]
    del node.input[2:]
    onnx.save(model, target)
    return target


def quality(net, path) -> float:
    return sqnr_db(run_model(net, IMAGES), run_model(path, IMAGES))


def test_onnxruntime_still_quantizes_layers_that_were_left_out(coarse, tmp_path):
    """When this fails, onnxruntime#25673 respects `nodes_to_exclude`, and `keep_float` may go."""
    left_out = to_int8(coarse, tmp_path / "int8.onnx", IMAGES, nodes_to_exclude=["conv3"])
    operators = Counter(node.op_type for node in optimized(left_out, tmp_path).graph.node)
    assert (operators["QLinearConv"], operators["Conv"]) == (3, 0)


@pytest.mark.parametrize("bias", [True, False])
def test_layer_that_was_left_out_stays_in_float(coarse, tmp_path, bias):
    source = coarse if bias else without_bias(coarse, tmp_path / "source.onnx", "conv3")
    path = to_int8(source, tmp_path / "int8.onnx", IMAGES, nodes_to_exclude=["conv3"])
    before = quality(source, path)
    keep_float(path, ["conv3"])
    operators = Counter(node.op_type for node in optimized(path, tmp_path).graph.node)
    assert (operators["QLinearConv"], operators["Conv"]) == (2, 1)
    assert quality(source, path) > before + 1


def optimized(path, tmp_path) -> onnx.ModelProto:
    """What ONNX Runtime makes of a file when it loads it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return onnx.load(tmp_path / "optimized.onnx")


# --- search


def table(**rows) -> pd.DataFrame:
    columns = ["latency_ms", "sqnr_db", "agreement", "macro_f1", "worst_recall"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns, dtype=float)


BUDGET = {"agreement": 0.99, "macro_f1": 0.005, "worst_recall": 0.01}
FP32 = {"macro_f1": 0.95, "worst_recall": 0.9}


def test_choice_is_the_fastest_within_the_budget():
    rows = table(
        slow=(2.0, 40, 1, 0.95, 0.9),
        fast=(1.0, 20, 0.99, 0.945, 0.89),
        wrong=(0.5, 15, 0.98, 0.95, 0.9),
        lossy=(0.5, 15, 1, 0.94, 0.9),
        unfair=(0.5, 15, 1, 0.95, 0.88),
    )
    name, within = choose(rows, FP32, BUDGET)
    assert name == "fast"
    assert within.to_dict() == {"slow": True, "fast": True, "wrong": False, "lossy": False, "unfair": False}


def test_among_equals_in_speed_the_nearest_to_fp32_wins_and_the_simplest_of_those():
    rows = table(simple=(1.04, 29.5, 1, 1, 1), elaborate=(1.0, 30.0, 1, 1, 1), coarse=(1.0, 20.0, 1, 1, 1))
    assert choose(rows, FP32, BUDGET)[0] == "simple"
    assert choose(rows.drop("simple"), FP32, BUDGET)[0] == "elaborate"
    rows.loc["simple", "latency_ms"] = 1.2
    assert choose(rows, FP32, BUDGET)[0] == "elaborate"


def test_without_any_candidate_in_the_budget_the_most_faithful_is_named():
    rows = table(fast=(1.0, 10, 0.5, 0.5, 0.5), faithful=(9.0, 20, 0.6, 0.6, 0.5))
    name, within = choose(rows, FP32, BUDGET)
    assert name == "faithful" and not within.any()


def test_score_is_perfect_for_the_same_logits_and_counts_every_class():
    logits = np.eye(3)[[0, 1, 2, 2]] * 5.0
    perfect = score(np.array([0, 1, 2, 2]), logits, logits)
    assert (perfect["agreement"], perfect["macro_f1"], perfect["worst_recall"]) == (1, 1, 1)
    other = score(np.array([0, 1, 2, 2]), logits, logits[[0, 1, 2, 1]])
    assert (other["agreement"], other["worst_recall"]) == (0.75, 0.5)
    assert sqnr_db(logits, logits * 1.1) == pytest.approx(20)


def test_layer_that_int8_spoils_is_named_first(coarse):
    recipe = {"correct": True, "per_channel": False, "reduce_range": True}
    gains = rank_sensitivity(partial(quantize, coarse), coarse, recipe, IMAGES)
    assert gains.index[0] == "conv3"
    assert set(gains.index) == {"conv1", "conv2", "conv3", "gemm"}


def test_recipes_are_tried_and_timed_against_fp32(net):
    recipes = dict(list(type_recipes(X86).items())[:2])
    labels = np.arange(len(IMAGES)) % 3
    rows = try_recipes(partial(quantize, net), recipes, net, IMAGES, labels, np.arange(len(labels)) < 5)
    assert [row["recipe"] for row in rows] == ["fp32", *recipes]
    assert rows[0]["agreement"] == 1
    assert rows[0]["valid_macro_f1"] != rows[0]["macro_f1"]
    assert all(row["latency_ms"] > 0 and row["bytes"] > 0 for row in rows)
    assert rows[1]["sqnr_db"] < rows[0]["sqnr_db"]


def test_timing_tells_a_large_network_from_a_small_one(net, conv_net):
    image = np.zeros((1, 3, 16, 16), np.float32)
    assert set(time_models({"a": net, "b": net}, image, rounds=2, calls=2)) == {"a", "b"}


def test_draws_are_repeatable_and_end_with_all_images(net):
    def quantize_drawn(target, drawn):
        to_int8(net, target, drawn)

    first, second = (try_draws(quantize_drawn, (4, 8, 99), 2, IMAGES[:16], IMAGES[16:], net) for _ in range(2))
    assert [row["images"] for row in first] == [4, 4, 8, 8, 16]
    assert first == second
    assert len({row["sqnr_db"] for row in first}) > 2


def test_results_are_remembered_until_model_or_recipe_change(tmp_path):
    model, cache, calls = tmp_path / "net.onnx", tmp_path / "cache.json", []

    def find(recipe):
        return remembered(cache, (model, recipe), lambda: calls.append(recipe) or {"사과": len(calls)})

    model.write_bytes(b"one")
    assert find("a") == find("a") == {"사과": 1}
    assert find("b") == {"사과": 2}
    model.write_bytes(b"two")
    assert find("a") == {"사과": 3}
    cache.write_text("{damaged")
    assert find("a") == find("a") == {"사과": 4}
