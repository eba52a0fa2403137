"""Simple classifiers that say what features know about the classes, always asked about groups they have not seen."""

import numpy as np
from sklearn import config_context
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from sklearn.utils import gen_batches

from utils.config import SEED
from utils.cross_validation import grouped_folds
from utils.metrics import macro_f1

COMPONENTS = 100
BATCH_SIZE = 1000  # rows whose squares are in memory at a time
TARGETS_IN_MEMORY = 10_000_000  # of the permutation test: images times classes times permutations


def compact(features: np.ndarray) -> np.ndarray:
    """Standardize features (N, D) and keep their first 100 principal axes; labels are not looked at.

    Rows get a mean squared length of 10, so that a classifier's penalty weighs the same whatever D was.
    """
    rows, scaler = features.astype(np.float32), StandardScaler(copy=False)
    for batch in gen_batches(len(rows), BATCH_SIZE):  # all at once takes five times the memory of the rows
        scaler.partial_fit(rows[batch])
    rows = scaler.transform(rows)
    if not rows.any():  # all images are alike
        return rows[:, :COMPONENTS]
    reduce = PCA(min(COMPONENTS, *features.shape), copy=False, random_state=SEED)
    axes = reduce.fit_transform(rows)
    return axes * np.sqrt(10 / (axes**2).sum(axis=1).mean())


def explained(features: np.ndarray) -> np.ndarray:
    """Share of the variance that each axis of `compact` features (N, D) explains: (D,)."""
    variances = features.var(axis=0)
    return variances / (variances.sum() or 1)


def clusters(features: np.ndarray, number: int) -> np.ndarray:
    """Put images into clusters by KMeans, fewer than `number` where fewer images differ; → each one's cluster (N,)."""
    distinct = len(np.unique(features, axis=0))
    return KMeans(min(number, distinct), n_init=10, random_state=SEED).fit_predict(features)


def permutation_p(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, permutations: int = 199) -> float:
    """Probability that features without any knowledge of the classes do as well (Ojala and Garriga 2010, test 1).

    Whole groups swap their labels, which scikit-learn's `permutation_test_score` cannot do: it permutes within groups.
    The score is macro-F1 of a ridge classifier, which is solved for many permutations at once; its penalty is the mean
    squared length of a row.
    """
    generator = np.random.default_rng(SEED)
    names, members = np.unique(groups, return_inverse=True)
    of_group = np.zeros(len(names), dtype=np.int64)
    of_group[members] = labels
    drawn = np.stack([labels, *(generator.permutation(of_group)[members] for _ in range(permutations))])
    folds, classes = grouped_folds(labels, groups), labels.max() + 1
    batches = gen_batches(len(drawn), max(1, TARGETS_IN_MEMORY // (len(labels) * classes)))
    scores = np.concatenate([_ridge_scores(features, drawn[batch], folds, classes) for batch in batches])
    return float((scores >= scores[0]).mean())


def _ridge_scores(features: np.ndarray, drawn: np.ndarray, folds: list, classes: int) -> np.ndarray:
    """Macro-F1 (P,) of out-of-fold predictions for each row of labels (P, N)."""
    predictions = np.zeros_like(drawn)
    for train, test in folds:
        targets = np.eye(classes)[drawn[:, train].T].reshape(len(train), -1)
        ridge = Ridge((features**2).sum(axis=1).mean()).fit(features[train], targets)
        predictions[:, test] = ridge.predict(features[test]).reshape(len(test), -1, classes).argmax(axis=2).T
    scores = [macro_f1(truth, predicted, classes) for truth, predicted in zip(drawn, predictions, strict=True)]
    return np.array(scores)


def label_suspects(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find images that look like another class than their folder's, most suspicious first: positions, and that class.

    Confident learning (Northcutt et al. 2021): a class is confident of an image when its out-of-fold probability (N, C)
    reaches the mean over the images that carry this label; a suspect's most probable confident class is not its label.
    Where no class is confident, the most probable one counts.
    """
    classes = range(probabilities.shape[1])
    thresholds = np.array([probabilities[labels == label, label].mean() for label in classes])
    confident = np.where(probabilities >= thresholds, probabilities, 0)
    other = np.where(confident.any(axis=1, keepdims=True), confident, probabilities).argmax(axis=1)
    suspects = np.flatnonzero(other != labels)
    margin = probabilities[suspects, other[suspects]] - probabilities[suspects, labels[suspects]]
    order = suspects[np.argsort(-margin, kind="stable")]
    return order, other[order]


def outliers(features: np.ndarray, neighbors: int = 5) -> np.ndarray:
    """Rank images by the mean cosine distance to their nearest neighbors, the loneliest first: positions (N,)."""
    nearest = NearestNeighbors(n_neighbors=min(neighbors, len(features) - 1), metric="cosine").fit(features)
    with config_context(working_memory=64):  # MB, of 1,024: no slower
        distances, _ = nearest.kneighbors()
    return np.argsort(-distances.mean(axis=1), kind="stable")
