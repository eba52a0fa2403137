"""INT8 recipes: the number types that suit a CPU, and variations of them."""

from pathlib import Path
from typing import NamedTuple

import onnx
from onnxruntime.quantization import QuantType

from utils.onnx_quant.graph import stem

X86 = {"x86_64", "amd64", "x86"}
LAYERS_ONLY = ("Conv", "Gemm", "MatMul", "Relu", "Clip")  # layers with weights, and activations that fuse with them
# what 8 bits are quick and close enough for besides; normalizations are not, nor is softmax
BETWEEN_LAYERS = ("Add", "Mul", "Sigmoid", "Concat", "Split", "Slice", "Pad", "Resize", "MaxPool", "AveragePool")
SHAPES = ("GlobalAveragePool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")
EVERY = LAYERS_ONLY + BETWEEN_LAYERS + SHAPES


class Recipe(NamedTuple):
    """How a float model becomes INT8: options of `quantize_static`, and whether the biases are corrected afterwards."""

    activation_type: QuantType
    per_channel: bool = True
    reduce_range: bool = False
    nodes_to_exclude: tuple[str, ...] = ()
    correct_biases: bool = True
    operators: tuple[str, ...] = EVERY
    note: str = ""  # what stays in float, in words

    @property
    def name(self) -> str:
        """The recipe in the field's short form, such as ``U8S8 per-channel reduce-range``."""
        words = ["U8S8" if self.activation_type == QuantType.QUInt8 else "S8S8"]  # weights are signed everywhere
        words += ["per-channel"] * self.per_channel + ["reduce-range"] * self.reduce_range
        words += ["uncorrected"] * (not self.correct_biases)
        return " ".join(words) + (f", {self.note}" if self.note else "")


LIBRARY_DEFAULT = Recipe(QuantType.QInt8, per_channel=False, correct_biases=False)  # the original's recipe, too


def type_recipes(cpu: dict) -> list[Recipe]:
    """List the number types that suit a CPU (`cpu_info`), what should be best first.

    As ONNX Runtime's documentation advises: on x86 unsigned activations and signed weights, which without VNNI keep 7
    bits (`reduce_range`), as their 16-bit sums would overflow; with VNNI a bit less is only less exact. On ARM both
    signed, which x86 is slow at. One scale per output channel of the weights is closer than one per tensor, and no
    slower.
    """
    signed, unsigned = Recipe(QuantType.QInt8), Recipe(QuantType.QUInt8)
    if cpu["architecture"].lower() not in X86:
        return [signed, unsigned]
    return [unsigned] if cpu["vnni"] else [unsigned._replace(reduce_range=True), unsigned]


def candidate_recipes(cpu: dict, prepared_path: Path) -> list[Recipe]:
    """List the recipes to choose from: the number types, as they are and with the stem in float, and two references.

    These show what bias correction is worth, and what ONNX Runtime's defaults, the original's recipe, would do. In
    networks that multiply, everything but the layers may stay in float: what is multiplied is a gate
    (squeeze-and-excitation, SiLU, attention), and rounded, its errors multiply, too.
    """
    types, model = type_recipes(cpu), onnx.load(prepared_path)
    stem_nodes = tuple(node.name for node in stem(model))
    recipes = [*types, *(recipe._replace(nodes_to_exclude=stem_nodes, note="stem in float") for recipe in types)]
    if any(node.op_type == "Mul" for node in model.graph.node):
        recipes.append(types[0]._replace(operators=LAYERS_ONLY, note="layers only"))
    return [*recipes, types[0]._replace(correct_biases=False), LIBRARY_DEFAULT]
