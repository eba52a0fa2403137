"""What is remembered between runs is forgotten as soon as anything that it depends on has changed."""

import importlib.util
import shutil

import numpy as np
import pytest
from conftest import ROOT

from bench.notebooks import define
from utils.files import cache_key, remembered, remembered_arrays


@pytest.fixture
def find(tmp_path):
    """Remember a result by its parts; it counts how often it was computed."""
    computed = []

    def compute() -> dict:
        computed.append(1)
        return {"사과": len(computed)}

    return lambda *parts: remembered(tmp_path / "cache.json", parts, compute)["사과"]


def test_arrays_are_remembered_alike_and_the_last_result_alone(tmp_path):
    computed, cache = [], tmp_path / "cache.npz"

    def find(*parts) -> int:
        def compute() -> dict:
            computed.append(parts)
            return {"logits": np.full((2, 3), len(computed))}

        found = remembered_arrays(cache, parts, compute)
        assert found.keys() == {"logits"} and found["logits"].shape == (2, 3)
        return found["logits"][0, 0]

    assert find("a") == find("a") == 1
    assert find("b") == find("b") == 2
    assert find("a") == 3
    cache.write_bytes(cache.read_bytes()[:100])
    assert find("a") == find("a") == 4


def quantize_with(edits=None, **settings):
    return define("onnx_quant", "quantize", edits=edits, **settings)[0]


def test_results_are_remembered_until_model_or_recipe_change(find, tmp_path):
    model = tmp_path / "net.onnx"
    model.write_bytes(b"one")
    assert find(model, "a") == find(model, "a") == 1
    assert find(model, "b") == 2
    model.write_bytes(b"two")
    assert find(model, "a") == 3
    (tmp_path / "cache.json").write_text("{damaged", encoding="utf-8")
    assert find(model, "a") == find(model, "a") == 4


def test_the_visible_call_is_part_of_what_is_remembered(find):
    """Whoever edits an option of `quantize_static` in the notebook gets new candidates, not those of before."""
    assert find(quantize_with()) == find(quantize_with()) == 1
    assert find(quantize_with({"per_channel=recipe.per_channel": "per_channel=False"})) == 2
    assert find(quantize_with()) == 1


def test_a_setting_that_the_visible_call_reads_is_part_of_it(find):
    edits = {"per_channel=recipe.per_channel": "per_channel=PER_CHANNEL"}
    assert find(quantize_with(edits, PER_CHANNEL=True)) == 1
    assert find(quantize_with(edits, PER_CHANNEL=False)) == 2
    assert find(quantize_with(edits, PER_CHANNEL=True, UNRELATED=3)) == 1


def test_every_module_of_utils_is_part_of_what_is_remembered(tmp_path):
    """The search, the session and the datasets shape the candidates as much as the recipes do."""
    shutil.copytree(ROOT / "utils", tmp_path / "utils", ignore=shutil.ignore_patterns("__pycache__"))
    spec = importlib.util.spec_from_file_location("copied_files", tmp_path / "utils" / "files.py")
    copied = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copied)
    before = copied.cache_key(["recipe"])
    assert before == cache_key(["recipe"])
    modules = sorted((tmp_path / "utils").rglob("*.py"))
    assert len(modules) > 30
    for module in modules:
        source = module.read_text(encoding="utf-8")
        module.write_text(source + "\nEDITED = True\n", encoding="utf-8")
        assert copied.cache_key(["recipe"]) != before, f"{module.name} does not count"
        module.write_text(source, encoding="utf-8")
    assert copied.cache_key(["recipe"]) == before
