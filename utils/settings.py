"""What each setting of the notebooks may be; what only the data can tell is checked where they are read."""

import platform
import sys
from math import inf
from numbers import Integral, Real
from typing import NamedTuple

from utils.config import require

ABOVE_ZERO = sys.float_info.min
TARGETS = ("any", "here", "arm64", "openvino", "web", "tensorrt")  # what INT8 is for
STRATEGIES = ("minority", "none", "all", "class weights", "oversampling")  # against imbalance


class Kind(NamedTuple):
    """A type, the bounds of a number, the texts to choose from, and whether there may be None, or several in a row."""

    type: type
    least: float = -inf
    most: float = inf
    none: bool = False
    many: bool = False
    choices: tuple[str, ...] = ()


WORDS = {Integral: "a whole number", Real: "a number", str: "text", dict: "a dictionary"}
COUNT, SHARE, TEXT = Kind(Integral, 1), Kind(Real, 0, 1), Kind(str)
KINDS = {
    **dict.fromkeys(["VERSIONS", "BATCH_SIZE", "MORE_IMAGES", "SCORED_IMAGES", "FOLD_CALIBRATION", "ROUNDS"], COUNT),
    **dict.fromkeys(["FINE_TUNE_EPOCHS", "FOLD_NETWORKS"], Kind(Integral, 0, none=True)),
    **dict.fromkeys(["BUDGET_MS", "BUDGET_KB"], Kind(Real, ABOVE_ZERO, none=True)),
    **dict.fromkeys(["ACCURACY", "AGREEMENT", "MACRO_F1_LOSS", "RECALL_LOSS"], SHARE),
    **dict.fromkeys(["MARGIN", "MINORITY_MARGIN", "LEARNING_RATE"], Kind(Real, ABOVE_ZERO, 1)),
    **dict.fromkeys(["DATA", "NAME", "CLUSTER"], TEXT),
    **dict.fromkeys(["ARCH", "NETWORKS", "GROUPS"], Kind(str, none=True)),
    **dict.fromkeys(["LABELS", "LABEL_COLUMNS"], Kind(str, none=True)),
    **dict.fromkeys(["MINORITY", "RUNTIMES"], Kind(str, none=True, many=True)),
    **{"SEED": Kind(Integral, 0, 2**31), "FOLDS": Kind(Integral, 3, none=True), "REPEATS": COUNT._replace(none=True)},
    **{"PAIR": TEXT._replace(many=True), "BATCH_SIZES": COUNT._replace(many=True)},
    **{
        "SPLIT": Kind(str, none=True, choices=("given", "ours", "absent")),
        "AUGMENT": Kind(str, none=True, choices=STRATEGIES),
        "TARGET": Kind(str, choices=TARGETS),
        "MODELS": Kind(dict),
        "PREPROCESSING": Kind(dict, none=True),
    },
}


def is_timed_here(target: str) -> bool:
    """Tell whether times measured here hold for a TARGET, and not for another program or kind of CPU."""
    return target in ("any", "here") or (target == "arm64" and platform.machine().lower() in ("arm64", "aarch64"))


def check(values: dict[str, object]) -> None:
    """Stop with a sentence for each setting, by name, that is not what it may be: InputError; others are passed by."""
    wrong = [name for name, kind in KINDS.items() if name in values and not _fits(values[name], kind)]
    require(not wrong, "; ".join(f"{name} is {values[name]!r}: it must be {_describe(KINDS[name])}" for name in wrong))


def _fits(value: object, kind: Kind) -> bool:
    if value is None or isinstance(value, bool):  # True would be taken for 1
        return value is None and kind.none
    if kind.many:
        return isinstance(value, list | tuple) and all(_fits(one, kind._replace(many=False)) for one in value)
    if kind.choices:
        return value in kind.choices
    return isinstance(value, kind.type) and (not isinstance(value, Real) or kind.least <= value <= kind.most)


def _describe(kind: Kind) -> str:
    if kind.choices:
        return f"one of {', '.join(map(repr, kind.choices))}" + ", or None" * kind.none
    least = " above 0" if kind.least == ABOVE_ZERO else f", {kind.least} or more"
    bounds = least * (kind.least > -inf) + f" and at most {kind.most}" * (kind.most < inf)
    return "a list, each of it " * kind.many + WORDS[kind.type] + bounds + ", or None" * kind.none
