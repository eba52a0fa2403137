"""The report, the table and the model card, which cannot say different things."""

import html
import re

import mistune
import pandas as pd
import pytest
from huggingface_hub import ModelCard

from utils.compare_models.model_card import model_entries, write_model_card
from utils.config import InputError
from utils.report import extend_report, read_report, render, update_report

PAIR = {
    "images": 304,
    "agreement": 0.99,
    "agreement_ci95": [0.97, 1.0],
    "flips": {"fixed": 1, "broken": 2},
    "mcnemar_p": 1.0,
    "macro_f1_delta": -0.003,
    "macro_f1_delta_ci95": [-0.02, 0.01],
}


PREPROCESSING = {"image_size": 64, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.25] * 3}


def comparison(ship: str = "onnx") -> dict:
    summary = pd.DataFrame(
        {"score": [0.9, 0.89], "low": [0.8, 0.79], "high": [0.97, 0.96], "bytes": [146_000, 48_000]}, ["onnx", "int8"]
    )
    summary["file"] = ["conv_net.onnx", "conv_net_int8.onnx"]
    rows = [(name, task, 1.0, 1.2, 2.0, 0.9, 1.1) for name in summary.index for task in (1, 16, "photo")]
    latency = pd.DataFrame(rows, columns=["model", "task", "p50", "p90", "p99", "low", "high"])
    processes = pd.DataFrame({"load_ms": 20.0, "cold_start_ms": 300.0, "peak_rss_mb": 70.0}, summary.index)
    return {
        "models": model_entries(summary, latency, processes),
        "pair": ["onnx", "int8"],
        "pairs": {"out of fold": PAIR},
        "verdict": {"ship": ship, "outcome": "not shown", "reason": 'because: "so"'},
        "machine": {"name": "a CPU", "threads": 2},
    }


@pytest.fixture
def run(tmp_path):
    dataset = {"images": 304, "classes": {"사과": 254, "on: off": 50}, "groups": 42, "series": []}
    update_report(tmp_path, "dataset", dataset | {"split": {"train": 210, "valid": 50, "test": 44}})
    scores = {"oof_macro_f1": 0.88, "oof_macro_f1_ci95": [0.79, 0.95]}
    scores |= {"test_macro_f1": 0.9, "test_macro_f1_ci95": [0.8, 0.97]}
    update_report(tmp_path, "train", {"arch": "conv_net"} | scores)
    update_report(tmp_path, "comparison", comparison())
    return tmp_path


def card(run) -> tuple[dict, str]:
    """Write the card, and read it as the Hub does."""
    write_model_card(run)
    read = ModelCard.load(run / "MODEL_CARD.md")
    return read.data.to_dict(), read.text


@pytest.mark.parametrize("ship", ["onnx", "int8"])
def test_card_has_the_front_matter_of_the_hub_with_the_score_to_quote(run, ship):
    update_report(run, "comparison", comparison(ship))
    front, text = card(run)
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 0.88 and result["dataset"]["split"] == "all, out of fold"
    assert result["task"]["type"] == front["pipeline_tag"] == "image-classification"
    assert result["dataset"]["name"] == "사과, on: off"
    assert ("int8" in front["tags"]) == (ship == "int8")
    assert text.index("0.880 (0.790 to 0.950) out of fold") < text.index(
        f"Use `{'conv_net' if ship == 'onnx' else 'conv_net_int8'}.onnx`"
    )


def test_card_warns_where_the_test_part_is_worse_than_the_folds_let_expect(run):
    assert "do not rely on this model yet" not in card(run)[1]
    extend_report(run, "train", {"test_macro_f1": 0.5, "test_macro_f1_ci95": [0.3, 0.7]})
    assert "The test part scores 0.500 (0.300 to 0.700), below the whole interval" in card(run)[1]
    printed = render("result.txt", report=read_report(run), deployed="x_deploy.onnx", next_steps=[], width=0)
    assert printed.index("do not rely on this model yet") < printed.index("Use conv_net.onnx")


def test_card_says_which_network_would_do_better(run):
    assert "would do better" not in card(run)[1]
    extend_report(
        run, "dataset", {"hint": "resnet18 would do better than conv_net. Try `python run.py --arch resnet18`"}
    )
    assert "Try `python run.py --arch resnet18`." in card(run)[1]


NAMES = ["사과", "o'clock", 'say "cheese"', "<script>alert(1)<", "a|b", "*x*", "_x_", "__init__", "`y`", "~~gone~~"]
NAMES += ["[z](evil)", "&amp;", "null", "---", "- x", "# x", "{{ 7 * 7 }}", "$x$", "back\\slash", "conv_net", "1.0"]
NAMES += ["new\nline"]


@pytest.mark.parametrize("name", NAMES)
def test_card_shows_any_class_name_as_it_is(run, name):
    report = read_report(run)
    report["dataset"]["classes"] = {name: 10, "plain": 10}
    report["comparison"]["verdict"]["reason"] = f"int8 loses 3.0% of {name}'s recall"
    for section, values in report.items():
        update_report(run, section, values)
    front, text = card(run)
    assert front["model-index"][0]["results"][0]["dataset"]["name"] == f"{name}, plain"
    page = mistune.create_markdown(escape=False, plugins=["table", "strikethrough", "math"])(text)
    assert "<script" not in page and "<del>" not in page and "math" not in page
    shown = html.unescape(re.sub(r"</?(h1|h2|p|strong|code|ul|li|table|thead|tbody|tr|th|td)\b[^>]*>", "", page))
    as_it_is = " ".join(name.split())
    assert f"conv_net: {as_it_is}, plain" in shown
    assert f"({as_it_is} 10, plain 10)" in shown
    assert f"3.0% of {as_it_is}'s recall" in shown


NOVELTY = {"auroc": 0.95, "auroc_ci95": [0.93, 0.97], "caught": 0.75, "kept": 0.94, "works": True}


@pytest.mark.parametrize(
    ("deployed", "works", "sentence"),
    [
        (True, True, "it says “unknown” 75% of the time, .*AUROC 0.95 (0.93 to 0.97); of the test photos, 94% are not"),
        (False, True, "names one of them all the same.*INT8 does not keep that"),
        (False, False, "names one of them all the same.*too low or not sure"),
    ],
)
def test_card_says_what_becomes_of_a_photo_of_something_else(run, deployed, works, sentence):
    assert "AUROC" not in card(run)[1]
    extend_report(run, "train", {"novelty": NOVELTY | {"works": works}})
    update_report(run, "quantization", {"deploy": {"novelty": deployed}})
    assert re.search(sentence.replace("(", r"\(").replace(")", r"\)"), card(run)[1], re.DOTALL)


def test_card_says_that_too_few_groups_tell_nothing_and_shows_the_cautions_of_the_data(run):
    nothing = {"auroc": float("nan"), "auroc_ci95": [float("nan")] * 2, "works": False}
    extend_report(run, "train", {"novelty": NOVELTY | nothing})
    extend_report(run, "dataset", {"caution": "classes with fewer than 10 images: a 3"})
    text = card(run)[1]
    assert "AUROC unknown (too few groups)" in text and "nan" not in text
    assert "classes with fewer than 10 images: a 3" in text


def test_command_line_names_bad_files_by_reason_and_what_to_be_careful_about():
    refused = [{"path": f"a/{number}.jpg", "reason": "it is a pointer"} for number in range(2100)]
    dataset = {"images": 9, "classes": {"a": 9}, "groups": 9, "choice": "x", "refused": refused, "caution": "masks"}
    said = render("headline.txt", notebook="EDA", report={"dataset": dataset | {"skipped": {".mov": 1}}})
    assert [line.strip() for line in said.splitlines()][2:] == [
        f"refused: {', '.join(f'a/{number}.jpg' for number in range(20))}, and 2080 more: it is a pointer",
        "skipped, as no images: .mov 1",
        "caution: masks",
    ]


def test_command_line_names_a_class_that_is_never_recognized(run):
    train = read_report(run)["train"]
    train["per_class"] = {"apple": {"recall": 1.0}, "tomato": {"recall": 0.0}}
    said = render("headline.txt", notebook="train", report={"train": train})
    assert "of the test part, no image of tomato is recognized" in said
    train["per_class"]["tomato"]["recall"] = 0.5
    assert "recognized" not in render("headline.txt", notebook="train", report={"train": train})


def test_command_line_says_what_a_given_split_hides():
    dataset = {"images": 9, "classes": {"a": 9}, "groups": 9, "choice": "x", "refused": []}
    dataset["given_split"] = {"note": "the given split parts 3 pairs"}
    assert "the given split parts 3 pairs" in render("headline.txt", notebook="EDA", report={"dataset": dataset})


def test_card_says_what_the_report_says(run):
    text = card(run)[1]
    report = read_report(run)["comparison"]
    assert render("models.md", models=report["models"]) in text
    assert report["verdict"]["reason"] in text
    assert "| out of fold | 304 | 99.0% (97.0% to 100.0%) | 1 | 2 | 0 | 1.000 | -0.003 (-0.020 to +0.010) |" in text


def test_card_says_where_a_file_may_be_used(run):
    found = [("here", "int8", 1.0), ("there", "int8", 0.9), ("there", "onnx", 1.0)]
    rows = [dict(zip(("runtime", "file", "agreement"), row, strict=True)) for row in found]
    known = {"ci95": [0.8, 1.0], "latency_ratio": [0.5, 0.4, 0.6]}
    extend_report(run, "comparison", {"runtimes": [row | known for row in rows]})
    text = card(run)[1]
    assert "| here | int8 | 100.0% (80.0% to 100.0%) | 0.50 |" in text
    assert text.count("Do not use") == 1
    assert "**Do not use int8 in there: it gives another prediction on 10.0% of the images.**" in text


def test_card_says_how_good_the_model_is_by_class_and_of_which_class_least_is_known(run):
    row = {"precision": 0.9, "recall": 0.8, "images": 254, "groups": 30}
    ends = {"recall low": 0.7, "recall high": 0.9, "precision low": 0.85, "precision high": 0.95}
    wide = row | ends | {"recall": 0.7, "recall low": 0.3, "images": 50, "groups": 12}
    extend_report(
        run, "train", {"oof_right": [0.876, 0.76, 0.94], "oof_per_class": {"사과": row | ends, "on: off": wide}}
    )
    text = card(run)[1]
    assert "| 사과 | 254 | 80% (70% to 90%) | 90% (85% to 95%) |" in text
    printed = render("result.txt", report=read_report(run), deployed="x_deploy.onnx", next_steps=[], width=0)
    assert "); for photos as they are, x_deploy.onnx. " in printed
    own = render("result.txt", report=read_report(run), deployed=None, next_steps=[], width=0)
    assert "for photos as they are" not in own, "a file by MODELS has no other that takes photos"
    assert "How good: of 100 photos like these, it gets about 88 right (76 to 94); macro-F1" in printed
    assert "Of 100 photos like these, it gets about 88 right (76 to 94); macro-F1" in text
    assert "Worst recognized: on: off, 70% (30% to 90%) of 50 images." in printed
    assert "Least is known about on: off: from 50 photos of 12 objects" in text and "of 100 it gets 30 to 90" in text


def test_card_lists_the_files_that_are_there_with_their_bytes(run):
    update_report(run, "comparison", comparison() | {"preprocessing": PREPROCESSING})
    (run / "conv_net_deploy.onnx").write_bytes(b"0" * 1234)
    text = card(run)[1]
    assert "| `conv_net_deploy.onnx` | 1,234 | `image`: a photo, uint8 (batch, 64, 64, 3), RGB, upright |" in text
    assert "| `conv_net.onnx` | 146,000 | `input`: float32 (batch, 3, 64, 64), normalized |" in text
    assert 'InferenceSession("conv_net_deploy.onnx")' in text


def test_card_says_what_was_corrected_by_hand(run):
    assert "by hand" not in card(run)[1]
    extend_report(run, "dataset", {"corrections": {"relabelled": 3, "dropped": 2}})
    assert "3 relabelled, 2 dropped by hand." in card(run)[1]


def test_card_of_models_that_others_made_leaves_out_what_is_unknown(tmp_path):
    update_report(tmp_path, "comparison", comparison())
    front, text = card(tmp_path)
    assert "Trained on" not in text and "Use `conv_net.onnx`" in text
    assert front["model-index"][0]["name"] == "onnx"


def test_report_keeps_the_keys_that_others_rely_on(run):
    model = read_report(run)["comparison"]["models"]["int8"]
    assert {"macro_f1", "ci95", "bytes", "latency_ms", "peak_rss_mb"} <= set(model)
    assert set(model["latency_ms"]) == {"1", "16"} and {"p50", "p90", "p99"} <= set(model["latency_ms"]["1"])
    assert model["photo_to_answer_ms"]["p50"] == 1.0


def test_further_evidence_joins_its_section_and_leaves_the_others_alone(run):
    before = read_report(run)
    extend_report(run, "comparison", {"robustness": [1]})
    after = read_report(run)
    assert after["comparison"].pop("robustness") == [1]
    assert after == before
    extend_report(run, "new", {"key": 1})
    assert read_report(run)["new"] == {"key": 1}


@pytest.mark.parametrize("content", [b"", b'{"dataset": ', b"\xff\xfe"])
def test_damaged_report_is_named_with_the_next_step(tmp_path, content):
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(InputError, match="report.json cannot be read: it is .* Delete it, and run the notebooks again"):
        read_report(tmp_path)
