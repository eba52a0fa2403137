"""Which head, and what does it cost: python -m bench.head [--data DIR --name RUN --arch A].

Needs the split.csv that EDA.ipynb makes. Frozen features, out of fold by group, three repeats: logistic regression on
100 standardized principal axes, its penalty searched; scikit-learn's discriminant analysis; `fit_layer`.
"""

import time

import numpy as np
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegressionCV
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from utils.train.confidence import abstain_threshold, tempered_out_of_fold
from utils.train.discriminant import fit_layer

from bench.options import parse_options
from utils.config import SEED
from utils.cross_validation import grouped_folds
from utils.datasets import ImageDataset, evaluation_transform, make_loader
from utils.features import extract_features
from utils.metrics import cross_entropy, expected_calibration_error, macro_f1
from utils.model import build_model
from utils.split import load_index, separable_groups

REPEATS = 3
ACCURACY = 0.95  # of the answers, as in train.ipynb


def logistic(known: np.ndarray, labels: np.ndarray, groups: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Search the penalty on axes whose rows have a mean squared length of 10; → log-probabilities of `new`."""
    scaler = StandardScaler().fit(known)
    pca = PCA(min(100, *known.shape), random_state=SEED).fit(scaler.transform(known))
    unit = np.sqrt(10 / pca.explained_variance_.sum())
    folds = grouped_folds(labels, groups)
    search = LogisticRegressionCV(
        Cs=[1, 10, 100], cv=folds, scoring="neg_log_loss", l1_ratios=(0,), max_iter=1000, use_legacy_attributes=False
    )
    search.fit(pca.transform(scaler.transform(known)) * unit, labels)
    return search.predict_log_proba(pca.transform(scaler.transform(new)) * unit)


def discriminant(known: np.ndarray, labels: np.ndarray, groups: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Shrink each class's covariance by Ledoit and Wolf; minutes for 4,096 features."""
    return LinearDiscriminantAnalysis("lsqr", shrinkage="auto").fit(known, labels).predict_log_proba(new)


def ours(known: np.ndarray, labels: np.ndarray, groups: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Choose as train.ipynb does."""
    weight, bias = fit_layer(known, labels, groups, labels.max() + 1).layer
    return new @ weight.T + bias


def score(method, features: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int) -> list[float]:
    """Macro-F1, log-loss, calibration error, share answered, seconds a fit."""
    logits, fold_of, seconds = np.zeros((len(labels), labels.max() + 1)), np.zeros(len(labels), dtype=int), []
    for fold, (train, test) in enumerate(grouped_folds(labels, groups, seed)):
        started = time.process_time()
        logits[test] = method(features[train], labels[train], groups[train], features[test]).clip(-1e3)
        seconds.append(time.process_time() - started)
        fold_of[test] = fold
    probabilities = tempered_out_of_fold(logits, labels, fold_of)
    answered = probabilities.max(axis=1) >= abstain_threshold(probabilities, labels, ACCURACY)
    macro = macro_f1(labels, logits.argmax(1), logits.shape[1])
    loss = cross_entropy(np.log(probabilities.clip(1e-12)), labels)
    return [macro, loss, expected_calibration_error(probabilities, labels), answered.mean(), np.mean(seconds)]


def main() -> None:
    """Print a row per method."""
    arch, run, data = parse_options(__doc__)
    index = load_index(run / "split.csv", data)
    classes, groups = sorted(index["class"].unique()), separable_groups(index).factorize()[0]
    model, preprocessing = build_model(arch)
    dataset = ImageDataset(data, index, classes, evaluation_transform(preprocessing))
    features, labels = extract_features(model, make_loader(dataset, 64), run / "features"), np.array(dataset.labels)
    print(f"{len(labels)} images, {len(classes)} classes, {features.shape[1]} features of {arch}")
    print(f"{'':28}{'macro-F1':>10}{'log-loss':>10}{'ECE':>8}{'answered':>10}{'CPU s':>8}")
    methods = {"logistic regression": logistic, "LDA of scikit-learn": discriminant, "fit_layer": ours}
    if features.shape[1] > 2000:
        del methods["LDA of scikit-learn"]
    for name, method in methods.items():
        with threadpool_limits(1):
            means = np.mean([score(method, features, labels, groups, seed) for seed in range(REPEATS)], axis=0)
        print(f"{name:28}{means[0]:10.3f}{means[1]:10.3f}{means[2]:8.3f}{means[3]:10.2f}{means[4]:8.2f}", flush=True)


if __name__ == "__main__":
    main()
