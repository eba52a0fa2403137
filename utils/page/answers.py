"""What the shipped kind of file answers to photos that its network has not been trained on."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import softmax

from utils.cross_validation import load_answers
from utils.files import sha256
from utils.intervals import share_interval
from utils.page.results import Results


def unseen_answers(results: Results) -> pd.DataFrame:
    """List what networks answer to the photos that they have not seen, the surest first.

    Out of fold where the folds' networks have answered as files of this kind; otherwise what the deployed file says to
    the test part. Columns: path, class, group, answer, probability, right, out_of_fold; rows keep their index. Raises
    InputError when the answers kept by onnx_quant.ipynb belong to another split or network.
    """
    run, index, details = results.run, results.index, results.classifier.details
    arch = results.report["train"]["arch"]
    made_from = {"split": sha256(run / "split.csv"), "model": sha256(run / f"fine_tuned_{arch}.pth")}
    logits = load_answers(run / f"out_of_fold_{arch}.npz", index["path"], **made_from).get(results.kind)
    if logits is not None:
        asked = ~np.isnan(logits[:, 0])
        probabilities = softmax(logits[asked] / details.get("temperature", 1.0), axis=1)
    else:
        asked = (index["split"] == "test").to_numpy()
        probabilities = np.stack([results.classifier.probabilities(photo) for photo in index.loc[asked, "photo"]])
    table = index.loc[asked, ["path", "class", "group"]].copy()
    table["answer"] = np.array(details["classes"])[probabilities.argmax(axis=1)]
    table["probability"] = probabilities.max(axis=1)
    table["right"] = table["answer"] == table["class"]
    table["out_of_fold"] = logits is not None
    return table.sort_values("probability", ascending=False, kind="stable")


def of_hundred(answers: pd.DataFrame) -> dict[str, int]:
    """Say how many of 100 photos get the right answer, and the ends of the 95 % interval."""
    low, high = share_interval(answers["right"].to_numpy(), answers["group"].to_numpy())
    shares = {"about": answers["right"].mean(), "low": low, "high": high}
    return {name: round(100 * share) for name, share in shares.items()}


def class_rows(answers: pd.DataFrame, names: Sequence[str]) -> list[dict]:
    """Describe each class: its name, photos asked about, how many are right and how many of 100, and a typical photo.

    Typical is the photo that is recognized most surely; `rows` has its row of the table.
    """
    described = []
    for name in names:
        own = answers[answers["class"] == name]
        row = {"name": name, "images": len(own), "right": int(own["right"].sum()), "groups": own["group"].nunique()}
        if len(own):
            row |= of_hundred(own)
        described.append(row | {"rows": list(own.sort_values("right", ascending=False, kind="stable").index[:1])})
    return described


def confusions(answers: pd.DataFrame) -> list[dict]:
    """List which class is taken for which, the most frequent first: of how many photos, and rows of the table."""
    pairs = answers[~answers["right"]].groupby(["class", "answer"], sort=False).groups
    of = answers["class"].value_counts()
    found = [
        {"name": name, "answer": answer, "of": int(of[name]), "rows": list(rows)}
        for (name, answer), rows in pairs.items()
    ]
    return sorted(found, key=lambda pair: -len(pair["rows"]))


def mistakes(answers: pd.DataFrame) -> list[dict]:
    """List the wrong answers, the surest first."""
    wrong = answers[~answers["right"]]
    return wrong.assign(rows=[[row] for row in wrong.index]).to_dict("records")
