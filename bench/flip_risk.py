"""Measure how often the losses hold that margins and noise exclude: python -m bench.flip_risk [SETS].

Each row is a large set of images with the logits of a float model and of its INT8 twin. 300 are taken at random, by
group, some hundred times: what is excluded then is compared with what is lost on the rest. *holds* is how often the
rest lost no more (97.5 % are promised); *median* is the loss excluded; *ships* is how often it is within 0.01 and no
class short of images speaks against it. Left what margins and noise say, right what counting flips says. The logits
are drawn, with noise of many kinds and with planted damage, or those of networks that read scikit-learn's digits,
shifted, turned and blurred, before and after ONNX Runtime's quantization by the function of onnx_quant.ipynb.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import trange

from bench.digits import read_digits
from utils.compare_models.paired import compare_predictions
from utils.compare_models.verdict import Rule, decide
from utils.metrics import macro_f1
from utils.split import minority_classes

SHARES = (0.35, 0.3, 0.2, 0.15)  # of the classes, where logits are drawn
MARGIN, MINORITY_MARGIN = 0.01, 0.10  # as in compare_models.ipynb
FILES = pd.DataFrame({"bytes": [2, 1], "latency_ms": [2, 1]}, index=["onnx", "int8"])  # nothing else speaks against it


class Twins(NamedTuple):
    """Images, and the logits of two models."""

    labels: np.ndarray  # (N,)
    reference: np.ndarray  # (N, C) logits
    logits: np.ndarray  # (N, C)
    groups: np.ndarray  # (N,)

    def part(self, rows: np.ndarray) -> "Twins":
        return Twins(*(values[rows] for values in self))

    def losses(self, rare: int) -> tuple[float, float]:
        """What the second model loses: macro-F1, and recall of the class `rare`."""
        first, second, rows = self.reference.argmax(1), self.logits.argmax(1), self.labels == rare
        scores = [macro_f1(self.labels, predictions, self.reference.shape[1]) for predictions in (first, second)]
        return scores[0] - scores[1], (first[rows] == rare).mean() - (second[rows] == rare).mean()


def draw_logits(margins: str, size: int, generator: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Draw labels, logits and groups of `size` images that are alike, 60,000 in all."""
    count = 60_000 // size
    labels = np.repeat(generator.choice(len(SHARES), count, p=SHARES), size)
    logits = 3.5 * np.eye(len(SHARES))[labels] + alike_normal(count, size, generator)
    if margins == "heavy-tailed":
        logits *= generator.exponential(size=(len(labels), 1)) + 0.3
    if margins == "small":
        logits = 1.3 * np.eye(len(SHARES))[labels] + alike_normal(count, size, generator)
    if margins == "piled up at 0":
        logits = (logits - logits.mean(axis=1, keepdims=True)) * np.sqrt(margin(logits))[:, None] / 2
    return labels, logits, np.repeat(np.arange(count), size)


def alike_normal(count: int, size: int, generator: np.random.Generator) -> np.ndarray:
    """Draw normal values (count · size, C), of whose variance groups of `size` share four fifths."""
    single = generator.normal(size=(count * size, len(SHARES)))
    if size == 1:
        return single
    return np.sqrt(0.8) * np.repeat(generator.normal(size=(count, len(SHARES))), size, axis=0) + np.sqrt(0.2) * single


def margin(logits: np.ndarray) -> np.ndarray:
    """Compute how far the largest logit is above the next one; (N,)."""
    ordered = np.sort(logits, axis=1)
    return ordered[:, -1] - ordered[:, -2]


def draw_noise(
    kind: str, labels: np.ndarray, logits: np.ndarray, size: int, generator: np.random.Generator
) -> np.ndarray:
    """Draw what INT8 adds to the logits, before it is scaled; images are alike in groups of `size`."""
    noise, rare = alike_normal(len(labels) // size, size, generator), labels == len(SHARES) - 1
    if kind == "heavy tails (t, 2 degrees)":
        noise /= np.sqrt(np.repeat(generator.chisquare(2, len(labels) // size), size) / 2)[:, None]
    if kind == "one image in 20 has 6 times as much":
        noise *= np.where(generator.random((len(labels), 1)) < 0.05, 6, 1)
    if kind == "grows with the margin":
        noise *= 0.3 + margin(logits)[:, None] / 3
    if kind == "twice as much at the boundary":
        noise *= 1 + np.exp(-margin(logits))[:, None]
    if kind == "minority has 5 times as much":
        noise *= np.where(rare, 5, 1)[:, None]
    if kind == "against the minority":
        noise[:, -1] -= 2
    if kind == "against what is right":
        noise -= np.eye(len(SHARES))[labels]
    return noise


def damage(kind: str, twins: Twins, generator: np.random.Generator) -> Twins:
    """Plant a fault in the second model that costs more than the margin."""
    logits, rare = twins.logits.copy(), twins.labels == len(SHARES) - 1
    if kind == "every class: 3 images in 100 at random":
        hit = generator.random(len(logits)) < 0.03
        logits[hit] = generator.permuted(logits[hit], axis=1)
    if kind == "minority alone: 15 images in 100 at random":
        hit = rare & (generator.random(len(logits)) < 0.15)
        logits[hit] = generator.permuted(logits[hit], axis=1)
    if kind == "minority's logit too low":
        logits[:, -1] -= 1.5
    if kind == "saturated: logits cut off":
        logits = np.minimum(logits, np.quantile(logits, 0.8)) + generator.normal(size=logits.shape) * 0.3
    if kind == "a channel lost":
        logits -= 1.2 * np.maximum(generator.normal(size=(len(logits), 1)), 0) * np.linspace(-1, 1, len(SHARES))
    return twins._replace(logits=logits)


WORST = ("heavy tails (t, 2 degrees)", "twice as much at the boundary", "minority has 5 times as much")
WORST += ("against what is right",)
NOISE = ("Gaussian", "one image in 20 has 6 times as much", "grows with the margin", "against the minority", *WORST)
DAMAGE = ("every class: 3 images in 100 at random", "minority alone: 15 images in 100 at random")
DAMAGE += ("minority's logit too low", "saturated: logits cut off", "a channel lost")


def drawn() -> Iterator[tuple[str, Twins]]:
    """Draw honest twins with noise of every kind, and damaged ones."""
    for margins, size in (("normal", 1), ("normal", 7), ("heavy-tailed", 1), ("small", 1), ("piled up at 0", 1)):
        for kind in NOISE if (margins, size) == ("normal", 1) else WORST:
            generator = np.random.default_rng(7)
            labels, reference, groups = draw_logits(margins, size, generator)
            logits = reference + 0.05 * draw_noise(kind, labels, reference, size, generator)
            name = f"{margins} margins{f', {size} alike' if size > 1 else ''}; {kind}"
            yield name, Twins(labels, reference, logits, groups)
    for kind in DAMAGE:
        generator = np.random.default_rng(8)
        labels, reference, groups = draw_logits("normal", 1, generator)
        honest = Twins(labels, reference, reference + 0.03 * generator.normal(size=reference.shape), groups)
        yield f"DAMAGE {kind}", damage(kind, honest, generator)


def real() -> Iterator[tuple[str, Twins]]:
    """Quantize networks that read digits."""
    with tempfile.TemporaryDirectory() as folder:
        for name, labels, reference, logits in read_digits(Path(folder)):
            yield f"digits, {name}", Twins(labels, reference, logits, np.arange(len(labels)))


def measure(twins: Twins, sets: int) -> tuple[pd.DataFrame, float]:
    """Take 300 images `sets` times and look at the rest; → a row per set, and the loss of all."""
    generator, rows = np.random.default_rng(9), []
    names, count = np.unique(twins.groups), 300 * len(np.unique(twins.groups)) // len(twins.labels)
    rare = int(np.bincount(twins.labels).argmin())
    rule = Rule("onnx", "int8", minority_classes(pd.Series(twins.labels)), MARGIN, MINORITY_MARGIN)
    classes = list(range(twins.reference.shape[1]))
    for _ in trange(sets, leave=False):
        taken = np.isin(twins.groups, generator.choice(names, count, replace=False))
        some, rest = twins.part(taken), twins.part(~taken)
        index = pd.DataFrame({"class": some.labels, "group": some.groups})
        rows.append(
            judge(compare_predictions(index, some.reference, some.logits, classes), rest.losses(rare), rare, rule)
        )
    return pd.DataFrame(rows), twins.losses(rare)[0]


def judge(found: dict, lost: tuple[float, float], rare: int, rule: Rule) -> dict[str, float]:
    """Compare what is excluded with what the rest lost, and say which file each rule would ship."""
    excluded, row = found["macro_f1_loss"], {"minority": -found["recall_delta"][rare][1] >= lost[1]}
    for name in ("bound", "counted"):
        by = found | {"macro_f1_loss": {"bound": excluded[name], "counted": excluded["counted"]}}
        decision = decide(rule, FILES, (0.5, 0.6), {"here": by})
        row |= {name: excluded[name], f"{name} holds": excluded[name] >= lost[0]}
        row[f"{name} ships"] = decision["outcome"] == "ship"
    return row


def main(sets: int) -> None:
    """Print a row per population."""
    print(f"{'':66}{'true':>8}{'margins and noise':>25}{'counting flips':>25}{'minority':>9}")
    print(f"{'':66}{'loss':>8}" + f"{'holds':>9}{'median':>8}{'ships':>8}" * 2 + f"{'holds':>9}")
    for name, twins in (*drawn(), *real()):
        rows, loss = measure(twins, sets)
        line = f"{name:66}{loss:8.4f}"
        for which in ("bound", "counted"):
            holds, ships = rows[f"{which} holds"].mean(), rows[f"{which} ships"].mean()
            line += f"{holds:9.1%}{rows[which].median():8.4f}{ships:8.0%}"
        print(f"{line}{rows['minority'].mean():9.1%}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
