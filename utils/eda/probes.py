"""Simple classifiers that say what features know about the classes, always asked about groups they have not seen."""

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from utils.config import SEED
from utils.cross_validation import grouped_folds
from utils.metrics import macro_f1

COMPONENTS = 100
CHUNK = 20_000_000  # numbers that a step of the permutation test holds


def compact(features: np.ndarray) -> np.ndarray:
    """Standardize features (N, D) and keep their first 100 principal axes; labels are not looked at.

    Rows get a mean squared length of 10, so that a classifier's penalty weighs the same whatever D was.
    """
    scaled = StandardScaler().fit_transform(features.astype(np.float32))
    axes = PCA(min(COMPONENTS, *features.shape), random_state=SEED).fit_transform(scaled)
    return axes * np.sqrt(10 / (axes**2).sum(axis=1).mean())


def permutation_p(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, permutations: int = 199) -> float:
    """Probability that features without any knowledge of the classes do as well (Ojala and Garriga 2010, test 1).

    Whole groups swap their labels. The score is macro-F1 of a ridge classifier, which is solved for many permutations
    at once; its penalty is the mean squared length of a row.
    """
    generator = np.random.default_rng(SEED)
    names, members = np.unique(groups, return_inverse=True)
    of_group = np.zeros(len(names), dtype=np.int64)
    of_group[members] = labels
    drawn = np.stack([labels, *(generator.permutation(of_group)[members] for _ in range(permutations))])
    folds, classes = grouped_folds(labels, groups), labels.max() + 1
    chunks = np.array_split(drawn, -(-drawn.size * classes // CHUNK))
    scores = np.concatenate([_ridge_scores(features, chunk, folds, classes) for chunk in chunks])
    return float((scores >= scores[0]).mean())


def _ridge_scores(features: np.ndarray, drawn: np.ndarray, folds: list, classes: int) -> np.ndarray:
    """Macro-F1 (P,) of out-of-fold predictions for each row of labels (P, N)."""
    predictions = np.zeros_like(drawn)
    for train, test in folds:
        targets = np.eye(classes)[drawn[:, train].T].reshape(len(train), -1)
        ridge = Ridge((features**2).sum(axis=1).mean()).fit(features[train], targets)
        predictions[:, test] = ridge.predict(features[test]).reshape(len(test), -1, classes).argmax(axis=2).T
    return np.array([macro_f1(*pair, classes) for pair in zip(drawn, predictions, strict=True)])


def label_suspects(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find images that look like another class than their folder's, most suspicious first: positions, and that class.

    Confident learning (Northcutt et al. 2021): a class is confident of an image when its out-of-fold probability (N, C)
    reaches the mean over the images that carry this label; a suspect's most probable confident class is not its label.
    """
    rows = np.arange(len(labels))
    thresholds = np.array([probabilities[labels == each, each].mean() for each in range(probabilities.shape[1])])
    confident = np.where(probabilities >= thresholds, probabilities, 0)
    other = confident.argmax(axis=1)
    suspects = rows[(confident.max(axis=1) > 0) & (other != labels)]
    margin = probabilities[suspects, other[suspects]] - probabilities[suspects, labels[suspects]]
    order = suspects[np.argsort(-margin, kind="stable")]
    return order, other[order]


def outliers(features: np.ndarray, neighbors: int = 5) -> np.ndarray:
    """Rank images by the mean cosine distance to their nearest neighbors, the loneliest first: positions (N,)."""
    nearest = NearestNeighbors(n_neighbors=min(neighbors, len(features) - 1), metric="cosine").fit(features)
    return np.argsort(-nearest.kneighbors()[0].mean(axis=1), kind="stable")
