"""Which last layer: python -m bench.head [--data DIR --name RUN --arch A].

Needs the split.csv that EDA.ipynb makes. Frozen features, out of fold by group, three repeats: macro-F1 with its 95 %
interval by group; its difference to that of `Head` on all blocks, which train.ipynb fits; log-loss; CPU seconds a fit.
Logistic regression is the plain one: balanced, on standardized features.
"""

import time

import numpy as np
import pandas as pd
from sklearn.base import ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from bench.folds import Images, read_images
from utils.cross_validation import out_of_fold
from utils.features import last_block
from utils.intervals import repeated_difference, repeated_score
from utils.metrics import cross_entropy
from utils.train.head import Head

REPEATS = 3


def compare(images: Images) -> pd.DataFrame:
    """Predict every image out of fold by each of the classifiers; → a row each."""
    last = last_block(images.features, images.sizes)
    logistic = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    methods = {
        "Head, all blocks": (Head(images.sizes), images.features),
        "Head, last block": (Head(), last),
        "logistic regression, last block": (logistic, last),
        "logistic regression, all blocks": (logistic, images.features),
    }
    found = {name: out_of_fold(*method, images.labels, images.groups, REPEATS) for name, method in methods.items()}
    first, rows = found["Head, all blocks"], {}
    for name, probabilities in found.items():
        rows[name] = repeated_score(probabilities, images.labels, images.groups)
        difference = repeated_difference(first, probabilities, images.labels, images.groups)
        rows[name].update(zip(["difference", "from", "to"], difference, strict=True))
        rows[name]["log-loss"] = cross_entropy(np.log(probabilities.mean(axis=0).clip(1e-12)), images.labels)
        rows[name]["CPU s"] = seconds(*methods[name], images)
    return pd.DataFrame.from_dict(rows, orient="index")


def seconds(classifier: ClassifierMixin, features: np.ndarray, images: Images) -> float:
    """Measure the CPU seconds of a fit to all images."""
    started = time.process_time()
    with threadpool_limits(1):
        classifier.fit(features, images.labels)
    return time.process_time() - started


def main() -> None:
    """Print a row per classifier."""
    caption, images = read_images(__doc__)
    print(f"{caption}, {images.features.shape[1]} features")
    print(compare(images).round(3).to_string())


if __name__ == "__main__":
    main()
