"""INT8 recipes: how a float file becomes an INT8 one, and which recipes suit a target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import onnx_ir as ir
from onnxruntime.quantization import QuantType

from utils.onnx_quant.graph import stem
from utils.onnx_quant.ranges import CalibrationSet

X86 = {"x86_64", "amd64", "x86"}
LAYERS_ONLY = ("Conv", "Gemm", "MatMul", "Relu", "Clip")  # layers with weights, and activations that fuse with them
# what 8 bits are quick and close enough for besides; normalizations are not, nor is softmax
BETWEEN_LAYERS = ("Add", "Mul", "Sigmoid", "Concat", "Split", "Slice", "Pad", "Resize", "MaxPool", "AveragePool")
SHAPES = ("GlobalAveragePool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")
EVERY = LAYERS_ONLY + BETWEEN_LAYERS + SHAPES


class Recipe(NamedTuple):
    """How a float model becomes INT8: options of `quantize_static`, and whether the biases are corrected afterwards.

    `symmetric`: all zero points are 0, and biases stay in float.
    """

    activation_type: QuantType
    per_channel: bool = True
    reduce_range: bool = False
    symmetric: bool = False
    nodes_to_exclude: tuple[str, ...] = ()
    correct_biases: bool = True
    operators: tuple[str, ...] = EVERY
    note: str = ""  # what stays in float, in words
    reference: bool = False  # shown beside the others, and not to choose from

    @property
    def weight_bits(self) -> int:
        """How many bits weights have: 7 leave room in sums of 16 bits, with which x86 CPUs without VNNI make do."""
        return 7 if self.reduce_range else 8

    @property
    def extra_options(self) -> dict:
        """Options of `quantize_static` that have no name of their own; the logits stay as they are summed."""
        options = {"ActivationSymmetric": self.symmetric, "QuantizeBias": not self.symmetric}
        return options | {"OpTypesToExcludeOutputQuantization": ["Gemm"]}

    @property
    def name(self) -> str:
        """The recipe in the field's short form, such as ``U8S8 per-channel reduce-range``."""
        words = ["U8S8" if self.activation_type == QuantType.QUInt8 else "S8S8"]  # weights are signed everywhere
        words += ["symmetric"] * self.symmetric + ["per-channel"] * self.per_channel
        words += ["reduce-range"] * self.reduce_range
        words += ["uncorrected"] * (not self.correct_biases)
        return " ".join(words) + (f", {self.note}" if self.note else "")


Quantize = Callable[[Path, CalibrationSet, Path, Recipe], None]  # prepared file, images, file to write, recipe
# the original's recipe, too
LIBRARY_DEFAULT = Recipe(QuantType.QInt8, per_channel=False, correct_biases=False, reference=True)
SIGNED = Recipe(QuantType.QInt8)
UNSIGNED = Recipe(QuantType.QUInt8)
SEVEN_BITS = UNSIGNED._replace(reduce_range=True)
TYPES = {  # by TARGET; "here" depends on the CPU
    "any": SEVEN_BITS,
    "openvino": SEVEN_BITS,  # as its documentation advises ("Saturation issue"), for the same reason
    "web": SEVEN_BITS,  # WebAssembly's relaxed dot product is defined for 7 bits alone (onnxruntime#22794)
    "arm64": SIGNED,
    "tensorrt": SIGNED._replace(symmetric=True),  # it refuses other zero points, and biases in int32
}


def type_recipes(target: str, cpu: dict) -> list[Recipe]:
    """List the number types that suit a target, what should be best first; `cpu` is the one at hand (`cpu_info`).

    As ONNX Runtime's documentation advises: on x86 unsigned activations and signed weights, which without VNNI keep 7
    bits (`reduce_range`), as their 16-bit sums would overflow; with VNNI a bit less is only less exact. "any" takes
    these, which predict the same on ARM, too. Other targets have theirs in `TYPES`, and "here" takes what suits this
    CPU. One scale per output channel of the weights is closer than one per tensor, and no slower.
    """
    if target != "here":
        return [TYPES[target]]
    if cpu["architecture"].lower() not in X86:
        return [SIGNED, UNSIGNED]
    return [UNSIGNED] if cpu["vnni"] else [SEVEN_BITS, UNSIGNED]


def candidate_recipes(target: str, cpu: dict, prepared_path: Path) -> list[Recipe]:
    """List the recipes to choose from: the number types, as they are and with the stem in float, and two references.

    These show what bias correction is worth, and what ONNX Runtime's defaults, the original's recipe, would do. In
    networks that multiply, everything but the layers may stay in float: what is multiplied is a gate
    (squeeze-and-excitation, SiLU, attention), and rounded, its errors multiply, too.
    """
    types = type_recipes(target, cpu)
    model = ir.load(prepared_path)
    stem_nodes = tuple(node.name for node in stem(model))
    recipes = [*types, *(recipe._replace(nodes_to_exclude=stem_nodes, note="stem in float") for recipe in types)]
    if any(node.op_type == "Mul" for node in model.graph):
        recipes.append(types[0]._replace(operators=LAYERS_ONLY, note="layers only"))
    return [*recipes, types[0]._replace(correct_biases=False, reference=True), LIBRARY_DEFAULT]
