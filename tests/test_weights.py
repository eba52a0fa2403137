"""Weights that are quantized once: the same files, for less."""

from unittest.mock import patch

import numpy as np
import pytest
from nets import calibration_set
from onnxruntime.quantization import qdq_quantizer

from bench.notebooks import define
from utils.onnx_quant.recipes import type_recipes
from utils.onnx_quant.weights import quantized_once

IMAGES = np.random.default_rng(0).normal(size=(24, 3, 16, 16)).astype(np.float32)
(quantize,) = define("onnx_quant", "quantize")


def write(net, folder, recipe, images) -> bytes:
    quantize(net, calibration_set(net, images), folder / "int8.onnx", recipe)
    return (folder / "int8.onnx").read_bytes()


@pytest.mark.parametrize("vnni", [True, False])
def test_files_are_the_same_bit_for_bit(net, tmp_path, vnni):
    jobs = [
        (recipe, IMAGES[start : start + 8])
        for recipe in type_recipes({"architecture": "x86_64", "vnni": vnni})
        for start in (0, 8, 16)
    ]
    plain = [write(net, tmp_path, *job) for job in jobs]
    with quantized_once():
        assert [write(net, tmp_path, *job) for job in jobs] == plain
    assert len(set(plain)) == len(jobs)  # each has ranges of its own


def test_the_second_file_asks_for_no_weight_again(net, tmp_path):
    recipe = type_recipes({"architecture": "x86_64", "vnni": True})[0]
    with patch.object(qdq_quantizer, "quantize_onnx_initializer", wraps=qdq_quantizer.quantize_onnx_initializer) as ask:
        with quantized_once():
            write(net, tmp_path, recipe, IMAGES)
            asked = ask.call_count
            write(net, tmp_path, recipe, IMAGES)
        assert 0 < asked == ask.call_count
        write(net, tmp_path, recipe, IMAGES)  # outside the block nothing is remembered
        assert ask.call_count == 2 * asked
