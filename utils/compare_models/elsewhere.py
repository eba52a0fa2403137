"""What a model predicted on other devices, by a run's kit: compared, and put beside the evidence."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from utils.compare_models.kit import kit_folder
from utils.compare_models.model_card import write_model_card
from utils.compare_models.paired import compare_predictions
from utils.config import CHECKPOINTS, InputError, relative
from utils.intervals import wilson_interval
from utils.report import extend_report, read_report

FIELDS = ("machine", "system", "cpu", "runtime", "file", "latency_ms")


def judge(files: Sequence[Path], name: str) -> list[dict]:
    """Compare what devices predicted (``answers_*.json`` of the kit) with what is expected; → a row a file.

    A row says machine, system, cpu, runtime, file, images, agreement with the same file here and its interval (ci95),
    the loss of macro-F1 that is excluded against the float file here, as the verdict bounds it, and latency_ms. Rows go
    into the run's report, in place of earlier ones of the same device, runtime and file, and into its model card.
    Raises InputError for a file that is not of this run's kit.
    """
    expected = _read(kit_folder(name) / "expected.json", "run `python run.py kit` to write it")
    rows = [_compare(path, _read(path, "give a file that check.py wrote"), expected) for path in files]
    run = CHECKPOINTS / name
    known = read_report(run).get("comparison", {}).get("elsewhere", [])
    replaced = [_key(row) for row in rows]
    extend_report(run, "comparison", {"elsewhere": [row for row in known if _key(row) not in replaced] + rows})
    write_model_card(run)
    return rows


def _key(row: dict) -> tuple:
    return tuple(row[name] for name in ("machine", "system", "cpu", "runtime", "file"))


def _read(path: Path, advice: str) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{relative(path)} does not exist or cannot be read: {advice}") from None


def _compare(path: Path, answers: dict, expected: dict) -> dict:
    photos, file = expected["photos"], answers.get("file")
    if file not in expected["files"] or answers["sha256"] != expected["files"][file]:
        raise InputError(
            f"{path} is about another file than the kit's: carry the present kit to the device, and check anew"
        )
    if set(answers["photos"]) != set(photos):
        raise InputError(
            f"{path} is about other photos than the kit's: carry the present kit to the device, and check anew"
        )
    found = np.array([answers["photos"][name] for name in photos])
    here = {name: np.array([photo["probabilities"][name] for photo in photos.values()]) for name in expected["files"]}
    reference = next((values for name, values in here.items() if "_int8_" not in name), here[file])  # the float file
    index = pd.DataFrame(photos.values())[["class", "group"]]
    compared = compare_predictions(index, _logits(reference), _logits(found), expected["classes"])
    agreeing = int((found.argmax(axis=1) == here[file].argmax(axis=1)).sum())
    return {name: answers.get(name) for name in FIELDS} | {
        "images": len(photos),
        "agreement": agreeing / len(photos),
        "ci95": wilson_interval(agreeing, len(photos)),
        "largest_difference": float(np.abs(found - here[file]).max()),
        "macro_f1_loss": compared["macro_f1_loss"]["bound"],
    }


def _logits(probabilities: np.ndarray) -> np.ndarray:
    """Turn probabilities (N, C) into logits, whose margins are compared; a constant of each image does not matter."""
    return np.log(np.maximum(probabilities, 1e-12))
