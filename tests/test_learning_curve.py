"""The learning curve: measured on groups never seen, extended as far as it may be, and what more would gain."""

import numpy as np
import pandas as pd
import pytest

from utils.train import learning_curve
from utils.train.feature_table import FeatureTable
from utils.train.learning_curve import (
    Curve,
    extend_errors,
    forecast,
    measured,
    report_curves,
    subsample_class,
    trace_curve,
)

CLASSES = ["apple", "cherry", "tomato"]


def clouds(counts: tuple[int, ...], apart: float, versions: int = 0) -> FeatureTable:
    """Classes as clouds, in groups of two; of the last class `versions` of each image follow."""
    generator, labels = np.random.default_rng(0), np.repeat(np.arange(len(counts)), counts)
    features = apart * generator.normal(size=(len(counts), 20))[labels] + generator.normal(size=(len(labels), 20))
    rows = [*range(len(labels)), *(versions * list(np.flatnonzero(labels == len(counts) - 1)))]
    paths, groups = np.array([f"{row}.jpg" for row in range(len(labels))]), np.arange(len(labels)) // 2
    return FeatureTable(features.astype(np.float32)[rows], paths[rows], labels[rows], groups[rows])


@pytest.fixture(scope="module")
def hard() -> tuple[FeatureTable, Curve]:
    table = clouds((60, 60, 24), apart=0.35, versions=2)
    return table, trace_curve(table, 3)


def test_sizes_double_and_more_images_make_fewer_mistakes(hard):
    curve = hard[1]
    np.testing.assert_allclose(curve.images[-1], [48, 48, 19.2], atol=1.5)  # four of five folds
    assert (np.diff(curve.sizes) > 0).all() and curve.sizes[-1] / curve.sizes[-2] == pytest.approx(2, rel=0.1)
    table = measured(curve)
    assert table["score"].iloc[-1] > table["score"].iloc[0] + 0.1
    assert (table["low"] <= table["score"]).all() and (table["score"] <= table["high"]).all()


def test_no_head_has_seen_the_group_that_it_predicts():
    """Groups are told by their features alone, and labels are drawn at random: whoever has seen a group knows it."""
    generator = np.random.default_rng(0)
    groups, labels = np.repeat(np.arange(40), 4), np.repeat(np.arange(40) % 2, 4)
    features = 5 * generator.normal(size=(40, 30))[groups] + 0.01 * generator.normal(size=(160, 30))
    curve = trace_curve(FeatureTable(features.astype(np.float32), np.arange(160).astype(str), labels, groups), 2)
    assert 0.3 < measured(curve)["score"].iloc[-1] < 0.7


def test_of_many_images_some_are_predicted(hard, monkeypatch):
    monkeypatch.setattr(learning_curve, "MANY", 100)
    curve = trace_curve(hard[0], 3, shares=(1,))
    assert 50 < len(curve.labels) == curve.predictions.shape[2] < 65
    assert curve.images[-1].sum() == pytest.approx(0.8 * 144, abs=3)


def test_thinning_one_class_leaves_the_others_whole(hard):
    table, curve = hard
    of_last = subsample_class(table, curve, 2)
    np.testing.assert_allclose(of_last.images[0, :2], curve.images[-1, :2])
    assert of_last.images[0, 2] == pytest.approx(curve.images[-1, 2] / 2, rel=0.1)
    assert (of_last.predictions[-1, 0] == curve.predictions[-1, 0]).all()


def test_power_law_is_found_again():
    sizes, exponent = np.array([10.0, 20, 40, 80]), 0.5
    fits = extend_errors(sizes, (0.05 + sizes**-exponent)[None], [160, 320])
    assert np.abs(fits[:, 0] - (0.05 + np.array([160, 320]) ** -exponent)).min(axis=0) == pytest.approx(
        [0, 0], abs=1e-9
    )


def test_forecast_grows_unsure_with_distance_and_never_beyond_all_right(hard):
    curve = hard[1]
    table = forecast(curve, curve.sizes[-1] * np.array([1, 2, 4]), curve.deviation())
    assert table["gain"].iloc[0] == table["gain_low"].iloc[0] == table["gain_high"].iloc[0] == 0
    assert (np.diff(table["gain_high"] - table["gain_low"]) > 0).all()
    assert table["high"].max() <= 1 and (table["gain"].diff().dropna() > 0).all()


@pytest.mark.parametrize("case", ["steep", "flat", "few groups"])
def test_what_more_photos_would_gain(case):
    table = clouds((60, 60, 24), apart=0.35 if case == "steep" else 3)
    if case == "few groups":
        table = table._replace(groups=table.labels * 4 + table.groups % 4)
    curve = trace_curve(table, 3)
    report = report_curves(curve, subsample_class(table, curve, 2), CLASSES, more=50)
    rows = pd.DataFrame([report["gain_smallest"], report["gain_each"], report["gain_doubled"]])
    assert rows["images"].tolist()[:2] == [50, 50]
    assert (rows["low"] <= rows["gain"]).all() and (rows["gain"] <= rows["high"]).all()
    assert report["smallest"] == "tomato" and report["extended"][0]["gain"] == 0
    if case == "steep":
        assert 0.01 < rows["gain"].iloc[0] < rows["gain"].iloc[1] + 0.1
        assert report["extended"][0]["macro_f1"] == pytest.approx(report["macro_f1"][-1]["score"])
    if case == "flat":
        assert rows["gain"].abs().max() < 0.01


def test_a_forecast_goes_no_farther_than_four_times_as_many():
    table = clouds((30, 30, 30), apart=3)
    curve = trace_curve(table, 3)
    report = report_curves(curve, subsample_class(table, curve, 0), CLASSES, more=5000)
    assert report["gain_smallest"]["images"] == pytest.approx(90, abs=2)


def test_a_class_of_three_that_is_never_found_has_no_gain_that_is_sure():
    """300 good ones and 3 defects, all taken for good: no draw and no resample differs, and yet little is known."""
    labels = np.repeat([0, 1], [300, 3])
    images = np.outer(np.array([1 / 8, 1 / 4, 1 / 2, 1]), [240, 2.4])
    curve = Curve(images, [0, 1], np.zeros((4, 3, 303), dtype=int), labels, np.arange(303))
    of_smallest = curve._replace(images=images[-2:], subsampled=[1], predictions=curve.predictions[-2:, :1])
    report = report_curves(curve, of_smallest, ["good", "defect"], more=50)
    for name in ("gain_smallest", "gain_each", "gain_doubled"):
        assert report[name]["high"] - report[name]["low"] > 0.2 and report[name]["high"] > 0.01, name
