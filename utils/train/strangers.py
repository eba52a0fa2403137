"""Images of none of the classes: whether novelty tells them, and whether the answer itself would not do as well."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import logsumexp
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from utils import parallel
from utils.config import SEED
from utils.cross_validation import fold_parts
from utils.features import extract_features
from utils.intervals import resample_weights, wilson_interval
from utils.train import novelty
from utils.train.confidence import to_probabilities
from utils.train.head import Views
from utils.train.novelty import KEPT, RESAMPLES, Detector

LEFT_OUT = 4  # classes, at most: each is a training
MANY = 2000  # images, at most, to train on
WORKS = 0.7  # AUROC that the whole interval has to lie above
MEASURES = ["novelty", "maximum probability", "energy"]
TILES = 4  # a side, to shuffle


def leave_one_out(
    fit: Callable, views: Views, index: pd.DataFrame, fold_of: np.ndarray, shipped: nn.Module
) -> pd.DataFrame:
    """Train without a class, then show it, among images of the others that were not trained on either.

    `fit(train, valid)` returns a network, as it has returned the `shipped` one. Each class in turn, of many four; the
    others are asked about in two folds of `fold_of` (N,). → a row per image asked about: what was left_out, path,
    group, stranger, and the three `MEASURES`.
    """
    parts, jobs = fold_parts(index["class"], fold_of), []
    names = np.random.default_rng(SEED).permutation(index["class"].unique())[:LEFT_OUT]
    for number, name in enumerate(names):
        stranger = (index["class"] == name).to_numpy()
        possible = [part for part in parts[number:] + parts[:number] if _both_sides(*part, stranger)]
        jobs += [(name, stranger, *part) for part in possible[:1]]  # none where there are so few groups

    def ask(job: tuple) -> pd.DataFrame:
        name, stranger, test, valid = job
        train, asked = index[~test & ~valid & ~stranger], index[test | valid | stranger]
        train = train.sample(min(MANY, len(train)), random_state=SEED).sort_index()
        network = fit(train, index[valid & ~stranger])
        detector = novelty.fit(network, views, train)
        table = asked[["path", "group"]].assign(left_out=name, stranger=asked["class"] == name)
        return table.assign(**_measure(network, detector, views.features_of(network, asked)))

    tables = list(parallel.run(ask, jobs, "classes left out", views.threads(shipped)))
    return pd.concat(tables or [pd.DataFrame(columns=["left_out", "path", "group", "stranger", *MEASURES])])


def _both_sides(test: np.ndarray, valid: np.ndarray, stranger: np.ndarray) -> bool:
    """Tell whether known images are left to train on, to choose the epoch on, and to ask about."""
    known = ~stranger
    return bool((known & ~test & ~valid).any() and (known & valid).any() and (known & test).any())


def _measure(network: nn.Module, detector: Detector, features: np.ndarray) -> dict[str, np.ndarray]:
    """Say how strange images are: novelty, and two baselines, the energy being that of Liu et al. 2020 (2010.03759)."""
    layer = network.get_classifier()
    with torch.inference_mode():
        logits = layer(torch.tensor(features, device=layer.weight.device)).cpu().numpy()
    by_logits = -to_probabilities(logits).max(axis=1), -logsumexp(logits, axis=1)
    return dict(zip(MEASURES, (detector.distances(features), *by_logits), strict=True))


def show_made_up(network: nn.Module, detector: Detector, images: Tensor, cache: Path | None = None) -> pd.DataFrame:
    """Show noise, plain colors and shuffled tiles beside the images (N, 3, S, S) that they take after; → as above."""
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(images.shape, generator=generator)
    shown = {"": images, "noise": noise, "plain colors": noise[:, :, :1, :1].expand_as(images)}
    shown["shuffled tiles"] = _shuffle_tiles(images, generator)
    loader = DataLoader(TensorDataset(torch.cat(list(shown.values()))), batch_size=64)
    features = np.split(extract_features(network, loader, cache), len(shown))
    known, *made_up = (pd.DataFrame(_measure(network, detector, rows)).reset_index(names="group") for rows in features)
    tables = []
    for name, table in zip(list(shown)[1:], made_up, strict=True):
        tables += [known.assign(left_out=name, stranger=False), table.assign(left_out=name, stranger=True)]
    return pd.concat(tables, ignore_index=True)


def _shuffle_tiles(images: Tensor, generator: torch.Generator) -> Tensor:
    side = images.shape[-1] // TILES
    tiles = images[..., : side * TILES, : side * TILES].unfold(2, side, side).unfold(3, side, side).flatten(2, 3)
    shuffled = [image[:, torch.randperm(TILES**2, generator=generator)] for image in tiles]
    rows = torch.stack(shuffled).unflatten(2, (TILES, TILES)).transpose(3, 4).flatten(4, 5).flatten(2, 3)
    return nn.functional.interpolate(rows, images.shape[-2:])


def score_strangers(shown: pd.DataFrame, measure: str = "novelty") -> dict[str, float]:
    """Score how well a measure tells strangers: `auroc`, its 95 % interval by group (`low`, `high`), and `caught`.

    Means over what was left out. Caught is the share of strangers that lie beyond 95 % of the known images. Novelty
    `works` if the whole interval lies above 0.7, from where Hosmer and Lemeshow 2000 call a discrimination acceptable.
    """
    curves, caught = [], []
    for _, table in shown.groupby("left_out"):
        stranger, values = table["stranger"].to_numpy(bool), table[measure].to_numpy(float)
        weights = resample_weights(stranger, table["group"].to_numpy(), RESAMPLES)
        curves.append(_auroc(values, stranger, np.concatenate([np.ones((1, len(table))), weights])))
        caught.append((values[stranger] > np.quantile(values[~stranger], KEPT)).mean())
    if not curves:  # so few groups that no class could be left out
        return {"auroc": np.nan, "low": np.nan, "high": np.nan, "caught": np.nan, "works": False}
    auroc, *resampled = np.mean(curves, axis=0)
    low, high = map(float, np.percentile(resampled, [2.5, 97.5]))
    return {"auroc": float(auroc), "low": low, "high": high, "caught": float(np.mean(caught)), "works": low > WORKS}


def compare_measures(shown: pd.DataFrame) -> pd.DataFrame:
    """Score each measure on each kind of strangers; → a row each."""
    scores = [{"measure": measure, **score_strangers(shown, measure)} for measure in MEASURES]
    return pd.DataFrame(scores).set_index("measure").drop(columns="works")


def _auroc(values: np.ndarray, stranger: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Say how often a stranger has the larger value, ties counting half, under rows of weights (B, N); → (B,)."""
    difference = values[stranger][:, None] - values[~stranger]
    larger = (np.sign(difference) + 1) / 2
    strangers, known = weights[:, stranger], weights[:, ~stranger]
    return (strangers @ larger * known).sum(axis=1) / (strangers.sum(axis=1) * known.sum(axis=1))


def report_novelty(told: dict, limit: dict, of_test: np.ndarray) -> dict:
    """Gather what the report holds; `of_test` (N,) are distances of test images, which had no say in it."""
    kept = int((of_test <= limit["threshold"]).sum())
    return {
        "auroc": told["auroc"],
        "auroc_ci95": [told["low"], told["high"]],
        "caught": told["caught"],
        "works": told["works"],
        "kept": kept / len(of_test),
        "kept_ci95": wilson_interval(kept, len(of_test)),
        "threshold": limit["threshold"],
        "threshold_ci95": [limit["low"], limit["high"]],
    }


def describe(told: dict, limit: dict) -> str:
    """Say what novelty is good for, and whether the deployed file will have it."""
    if not told["works"]:
        return (
            f"Strangers are not surely told: AUROC **{told['auroc']:.2f}** ({told['low']:.2f} to {told['high']:.2f}); "
            f"all of it has to lie above {WORKS}. The deployed file will have no `novelty`: whatever it is shown, it "
            "names one of its classes."
        )
    return (
        f"A class that training never saw is told from the others with an AUROC of **{told['auroc']:.2f}** "
        f"({told['low']:.2f} to {told['high']:.2f}): {told['caught']:.0%} of its images lie beyond 95 % of the others. "
        f"The deployed file says `unknown` beyond a distance of {limit['threshold']:.2f} ({limit['low']:.2f} to "
        f"{limit['high']:.2f})."
    )
