"""Paths, settings, the machine, and errors that the user can mend."""

import atexit
import gc
import os
import platform
import random
import re
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from math import inf
from numbers import Integral, Real
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINTS = ROOT / "checkpoints"
EMBEDDED = ROOT / "data" / "train"  # the fruit, whose network is conv_net, as in the original study
SEED = 0
BATCH = 4  # images a call, and a call a core: their activations stay in the core's cache
THREADS = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
RANDOM_NUMBERS = threading.Lock()  # torch has one generator for all threads: who draws from a seed draws alone
ABOVE_ZERO = sys.float_info.min
TARGETS = ("any", "here", "arm64", "openvino", "web", "tensorrt")  # what INT8 is for
STRATEGIES = ("minority", "none", "all", "class weights", "oversampling")  # against imbalance
on_worker = False  # whether this process computes for another one, most likely on another machine

atexit.register(gc.freeze)  # or Python would look through a million objects of its libraries once more: a second


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
    **dict.fromkeys(["ARCH", "NETWORKS", "GROUPS", "LABELS", "LABEL_COLUMNS"], Kind(str, none=True)),
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


class InputError(ValueError):
    """Something the user can mend: the message names the file, the cause and the next step."""

    def _render_traceback_(self) -> list[str]:
        """Show notebook users the sentence instead of a traceback (an IPython hook)."""
        return [f"{type(self).__name__}: {self}"]


def project_path(path: str | Path) -> Path:
    """Resolve a path as typed in a notebook: relative ones start at the project's root, wherever the kernel started."""
    return ROOT / Path(path).expanduser()


def run_folder(name: str = "") -> Path:
    """Create and return the folder that holds everything one run produces: ``checkpoints/<name>``."""
    return make_folder(CHECKPOINTS / name)


def make_folder(folder: Path) -> Path:
    """Create a folder, if there is none, and return it; raises InputError where it cannot be made or written to."""
    require(not folder.is_file(), f"{relative(folder)} is a file: give this run another name (--name; NAME in Jupyter)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        failed = f"{relative(folder)} cannot be written to ({error.strerror})"
        raise InputError(f"{failed}: copy the project to where you may write") from None
    return folder


def relative(path: str | Path) -> str:
    """Write a path the way a user would type it: from the project's root where it lies below it."""
    path = Path(path)
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


def require(condition: bool, sentence: str) -> None:
    """Stop with a sentence unless a condition, on a setting mostly, holds: InputError."""
    if not condition:
        raise InputError(sentence)


def listing(names: Iterable[object], limit: int = 8) -> str:
    """Write names in a row; of many, the first ones and how many more there are."""
    names = list(map(str, names))
    more = len(names) - limit
    return ", ".join(names if more < 2 else [*names[:limit], f"and {more} more"])


def by_reason(refused: Iterable[dict], limit: int = 3) -> list[str]:
    """Write refused files (path, reason) a line for each reason, with the first files that it holds for."""
    paths = defaultdict(list)
    for file in refused:
        paths[re.sub(r" \([\d,]+ bytes[^)]*\)", "", file["reason"])].append(file["path"])
    return [f"{listing(alike, limit)}: {reason}" for reason, alike in paths.items()]


def seed_everything(seed: int = SEED) -> None:
    """Seed Python, NumPy and torch, and ask torch for deterministic kernels."""
    import torch

    with RANDOM_NUMBERS:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
    torch.set_deterministic_debug_mode("warn")  # as use_deterministic_algorithms, which imports torch's compiler: 2 s


@cache
def device() -> str:
    """Name what networks compute on: cuda or mps where there is one."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def cpu_info() -> dict:
    """Name the CPU and say what it has for 8-bit numbers: AVX2, AVX-512 and VNNI on x86, the dot product on ARM."""
    import torch

    found = torch.cpu.get_capabilities()
    return {
        "name": found.get("cpu_name", ""),
        "architecture": found.get("architecture", ""),
        "vnni": any(found.get(flag, False) for flag in ("avx512_vnni", "avx_vnni")),
        "avx2": bool(found.get("avx2", False)),
        "avx512": bool(found.get("avx512_f", False)),
        "dot_product": bool(found.get("dot", False)),
    }


def machine_info() -> dict:
    """Describe what the numbers were measured on: CPU and its clock's governor (Linux), system, threads, versions."""
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    clock = governor.read_text(encoding="utf-8").strip() if governor.exists() else "unknown"
    versions = {name: version(name) for name in ("torch", "onnxruntime", "numpy")}
    return cpu_info() | {"governor": clock, "system": platform.platform(), "threads": THREADS} | versions


def is_timed_here(target: str) -> bool:
    """Tell whether times measured here hold for a TARGET, and not for another program or kind of CPU."""
    return target in ("any", "here") or (target == "arm64" and platform.machine().lower() in ("arm64", "aarch64"))


def check_settings(values: dict[str, object]) -> None:
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
