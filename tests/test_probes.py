"""What a probe says: right about knowledge, right about ignorance, never asked about what it was fitted on."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from utils import features as features_module
from utils.cross_validation import LINEAR, out_of_fold
from utils.eda.probes import clusters, label_suspects, outliers
from utils.features import compact
from utils.intervals import repeated_score


@pytest.fixture
def data():
    """Three classes of 30 images in 10 objects, 20 features, classes well apart."""
    generator = np.random.default_rng(0)
    labels, groups = np.repeat(np.arange(3), 30), np.repeat(np.arange(30), 3)
    centers = generator.normal(0, 3, (3, 20))
    return centers[labels] + generator.normal(size=(90, 20)), labels, groups


def test_knowledge_is_seen_and_ignorance_too(data):
    features, labels, groups = data
    noise = np.random.default_rng(1).normal(size=features.shape)
    linear = LogisticRegression()
    good = repeated_score(out_of_fold(linear, features, labels, groups), labels, groups)
    bad = repeated_score(out_of_fold(linear, noise, labels, groups), labels, groups)
    assert good["low"] > 0.8 > 0.6 > bad["high"] > 1 / 3 > bad["low"]


def test_rows_that_are_standardized_in_batches_are_the_same(data, monkeypatch):
    features = data[0].astype(np.float32)
    before = features.copy()
    monkeypatch.setattr(features_module, "STANDARDIZED", 7)
    found = compact(features)
    assert np.array_equal(features, before)
    expected = PCA(20, random_state=0).fit_transform(StandardScaler().fit_transform(features))
    expected *= np.sqrt(10 / (expected**2).sum(axis=1).mean())
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_many_images_are_cut_into_folds_once(data):
    features, labels, groups = (np.tile(part, (23, 1) if part.ndim > 1 else 23)[:2000] for part in data)
    few, many = (out_of_fold(KNeighborsClassifier(1), features[:n], labels[:n], groups[:n]) for n in (1999, 2000))
    assert (len(few), len(many)) == (3, 1)
    assert (many.sum(axis=2) == 1).all(), "every image is asked about"


def test_views_of_one_object_do_not_help(data):
    _, labels, groups = data
    generator = np.random.default_rng(2)
    objects = generator.normal(size=(30, 20))[groups] + generator.normal(0, 0.01, (90, 20))
    nearest = KNeighborsClassifier(1)
    score = repeated_score(out_of_fold(nearest, objects, labels, groups), labels, groups)["score"]
    assert score < 0.6, "a view of the same object was trained on"
    leaking = repeated_score(out_of_fold(nearest, objects, labels, np.arange(90)), labels, groups)["score"]
    assert leaking > 0.9, "the object itself should give it away"


def test_swapped_labels_and_strangers_are_found(data):
    features, labels, groups = data
    wrong = np.array([4, 40, 77])
    labels = labels.copy()
    labels[wrong] = (labels[wrong] + 1) % 3
    probabilities = out_of_fold(LogisticRegression(), features, labels, np.arange(90)).mean(axis=0)
    assert set(wrong) <= set(label_suspects(probabilities, labels)[0][:5])
    features[17] = -features[17] * 5
    assert outliers(features)[0] == 17


def test_images_that_are_all_alike_are_described_and_put_into_one_cluster():
    features = compact(np.ones((12, 30)))
    assert features.shape[0] == 12 and not features.any()
    assert set(clusters(features, 3)) == {0}


def test_many_classes_of_few_images_are_no_reason_to_warn(recwarn):
    labels = np.repeat(np.arange(60), 3)
    out_of_fold(LINEAR, np.random.default_rng(0).normal(size=(180, 5)), labels, np.arange(180), repeats=1)
    assert not [str(warning.message) for warning in recwarn if "unique classes" in str(warning.message)]
