"""The risk of a flip: what INT8 may cost, from how far it moved the logits and how far they would have had to move."""

from typing import NamedTuple

import numpy as np

from utils.intervals import rare_sum_interval

NEAREST = 10  # groups that the estimate rests on, those nearest to a flip, and no more than one in eight
FEWEST = 40  # groups: with fewer, there is nothing to estimate from
TRIED = 500  # images of a class, at most, on which the noise of the others is tried


class Changes(NamedTuple):
    """What the second model changed, image by image."""

    answers: np.ndarray  # (N,) of the first model
    margins: np.ndarray  # (N, C) ≥ 0, of the answer to each other class
    moves: np.ndarray  # (N, C) ≥ 0, by how much each margin shrank
    flipped_to: np.ndarray  # (N,) the answer of the second model
    groups: np.ndarray  # (N,)


def changes(reference: np.ndarray, logits: np.ndarray, groups: np.ndarray) -> Changes:
    """Set the margins of the first model's logits (N, C) beside what the second model's logits differ from them."""
    rows, answers = np.arange(len(reference)), reference.argmax(axis=1)
    difference = logits - reference
    margins = reference[rows, answers][:, None] - reference
    moves = np.maximum(difference - difference[rows, answers][:, None], 0)
    return Changes(answers, margins, moves, logits.argmax(axis=1), groups)


def flip_ratios(changed: Changes) -> tuple[np.ndarray, np.ndarray]:
    """Say how near each answer came to a flip.

    → the part (N,) of the margin to another class that the move has used up, above 1 where the answer flipped; and the
    class (N,) that it flipped to, would flip to first if the same move were longer, or is nearest to without a move.
    """
    zero = np.zeros_like(changed.margins, dtype=float)
    ratios = np.divide(changed.moves, changed.margins, out=zero, where=changed.margins > 0)
    largest, flipped = ratios.max(axis=1), changed.answers != changed.flipped_to
    own = changed.answers[:, None] == np.arange(ratios.shape[1])
    nearest = np.where(own, np.inf, changed.margins).argmin(axis=1)  # for an answer that moved away from every other
    rivals = np.where(flipped, changed.flipped_to, np.where(largest > 0, ratios.argmax(axis=1), nearest))
    return np.where(flipped, np.maximum(largest, np.nextafter(1, 2)), np.minimum(largest, 1)), rivals


def estimate_loss(changed: Changes, losses: np.ndarray, largest: float) -> float:
    """Estimate the loss that is excluded with 97.5 % confidence; `losses` (N,) ≥ 0 is what each answer's flip costs.

    The larger of two bounds. They see different faults: small margins with ordinary noise, and large noise that met
    large margins. A fault that no image shows is seen by neither. inf where too few images bear upon it. `largest` is
    what the next flip may cost at most. `bench/flip_risk.py` measures the coverage.
    """
    return max(_amplified(changed, losses, largest), _exchanged(changed, losses))


def _amplified(changed: Changes, losses: np.ndarray, largest: float) -> float:
    """Bound the loss from the flips that more noise of the same kind would cause.

    Flips come from small margins, and the share of images whose margin is below x is proportional to x for small x, as
    there are no more images next to the boundary than a little further on. Thus u times the noise causes u times the
    flips: the tail of the ratios has index 1, with which the flips above a threshold are extrapolated (Weissman 1978,
    JASA 73:812). Where the tail is heavier than that (Hill 1975, Annals of Statistics 3:1163), its own index counts.
    """
    names = np.unique(changed.groups, return_inverse=True)[1]
    count = names.max() + 1
    if count < FEWEST:
        return np.inf
    ratios = np.where(losses > 0, flip_ratios(changed)[0], 0)
    tops = np.zeros(count)
    np.maximum.at(tops, names, ratios)
    *above, threshold = np.sort(tops)[::-1][: min(NEAREST, count // 8)]
    if not 0 < threshold < 1:  # as many flips are there to be counted, or fewer groups have been moved at all
        return np.inf
    index = min(1.0, len(above) / max(np.log(np.array(above) / threshold).sum(), 1e-9))
    beyond = np.bincount(names, np.where(ratios > threshold, losses, 0))
    return threshold**index * rare_sum_interval(beyond, largest)[1]


def _exchanged(changed: Changes, losses: np.ndarray) -> float:
    """Bound the loss from the flips that each image's noise would cause in others of the same answer, on average."""
    expected = np.zeros(len(losses))
    for answer in np.unique(changed.answers):
        images = np.flatnonzero(changed.answers == answer)
        tried = images[:: -(-len(images) // TRIED)]
        for image in tried:
            flips = (changed.moves[images] > changed.margins[image]).any(axis=1)
            expected[images] += flips * losses[image] / len(tried)
    names = np.unique(changed.groups, return_inverse=True)[1]
    return rare_sum_interval(np.bincount(names, expected), max(expected.max(), 1e-9))[1]
