"""INT8 recipes: the number types that suit a CPU, and variations worth trying."""

from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

from utils.files import whole_file
from utils.onnx_quant.bias_correction import correct_biases
from utils.onnx_quant.graph import keep_float, stem

X86 = {"x86_64", "amd64", "x86"}


def type_recipes(cpu: dict) -> dict[str, dict]:
    """Name the number types that suit a CPU, as options of `quantize_static`: what should be best first.

    As ONNX Runtime's documentation advises: on x86 unsigned activations and signed weights, which without VNNI keep 7
    bits (`reduce_range`), as their 16-bit sums would overflow; on ARM both signed. One scale per output channel of the
    weights is closer than one per tensor, and no slower.
    """
    signed = _recipe(QuantType.QInt8)
    unsigned, seven_bits = _recipe(QuantType.QUInt8), _recipe(QuantType.QUInt8, reduce_range=True)
    x86_order = [unsigned, seven_bits, signed] if cpu["vnni"] else [seven_bits, unsigned, signed]
    order = x86_order if cpu["architecture"].lower() in X86 else [signed, unsigned]
    return {recipe_name(**recipe): recipe for recipe in order}


def candidate_recipes(cpu: dict, prepared_path: Path, sensitive: list[str]) -> dict[str, dict]:
    """Name the recipes to choose from: the types, and variations of the two best of them.

    Variations leave the stem or the most `sensitive` node in float, cut outliers off (percentile, entropy), or leave
    the biases as they are. The last one is the library's default, which is also the original's recipe.
    """
    first_nodes = [node.name for node in stem(onnx.load(prepared_path))]
    recipes = list(type_recipes(cpu).values())
    best, second = recipes[:2]
    for base in (best, second):
        recipes.append(base | {"nodes_to_exclude": first_nodes, "note": "stem in float"})
    for name in [name for name in sensitive if name not in first_nodes][:1]:
        recipes.append(best | {"nodes_to_exclude": [name], "note": f"{name} in float"})
    recipes += [best | {"calibrate_method": CalibrationMethod[name]} for name in ("Percentile", "Entropy")]
    recipes += [best | {"correct": False}, _recipe(QuantType.QInt8, per_channel=False) | {"correct": False}]
    return {recipe_name(**recipe): recipe for recipe in recipes}


def _recipe(activation_type: QuantType, per_channel: bool = True, reduce_range: bool = False) -> dict:
    return {
        "activation_type": activation_type,
        "weight_type": QuantType.QInt8,
        "per_channel": per_channel,
        "reduce_range": reduce_range,
        "calibrate_method": CalibrationMethod.MinMax,
        "nodes_to_exclude": [],
        "correct": True,
        "note": "",
    }


def recipe_name(
    activation_type: QuantType,
    weight_type: QuantType,
    per_channel: bool,
    reduce_range: bool,
    calibrate_method: CalibrationMethod,
    correct: bool,
    note: str,
    **_,
) -> str:
    """Write a recipe in the field's short form, such as ``U8S8 per-channel reduce-range``."""
    letters = "".join("U8" if each == QuantType.QUInt8 else "S8" for each in (activation_type, weight_type))
    method = [] if calibrate_method == CalibrationMethod.MinMax else [calibrate_method.name.lower()]
    words = ["per-channel"] * per_channel + ["reduce-range"] * reduce_range + method + ["uncorrected"] * (not correct)
    return " ".join([letters, *words]) + (f", {note}" if note else "")


def quantize_file(
    prepared: Path, target: Path, ranges: Path, images: np.ndarray, *, correct: bool, note: str = "", **recipe
) -> None:
    """Quantize a prepared model by a recipe, as onnx_quant.ipynb does.

    `ranges` are those of `calibrate` by the recipe's method, `images` float32 (N, 3, H, W) those to correct biases on.
    """
    with whole_file(target) as temporary:
        quantize_static(
            prepared, temporary, None, quant_format=QuantFormat.QDQ, calibration_cache_path=ranges, **recipe
        )
        keep_float(temporary, recipe["nodes_to_exclude"])
        if correct:
            correct_biases(prepared, temporary, images)
