"""INT8 for the CPU at hand."""

import platform
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import torch
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.shape_inference import quant_pre_process

from utils.config import THREADS, whole_file


def cpu_info() -> dict:
    """Name the CPU and say whether it multiplies 8-bit numbers natively (VNNI on x86, dot product on ARM)."""
    found = torch.cpu.get_capabilities()
    vnni = any(found.get(flag, False) for flag in ("avx512_vnni", "avx_vnni"))
    return {"name": found.get("cpu_name", ""), "architecture": found.get("architecture", ""), "vnni": vnni}


def machine_info() -> dict:
    """Describe what the numbers were measured on: CPU, system, threads, versions."""
    versions = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
    return cpu_info() | {"system": platform.platform(), "threads": THREADS} | versions


def candidate_recipes(cpu: dict) -> dict[str, dict]:
    """Name the options of `quantize_static` that suit a CPU: the best choice first, the library's default last.

    As ONNX Runtime's documentation advises: on x86 unsigned activations and signed weights, which without VNNI keep 7
    bits (`reduce_range`), as their 16-bit sums would overflow; on ARM both signed. One scale per output channel of the
    weights is closer than one per tensor, and no slower.
    """
    x86 = cpu["architecture"].lower() in {"x86_64", "amd64", "x86"}
    default = _recipe(QuantType.QInt8, per_channel=False)
    signed = _recipe(QuantType.QInt8)
    unsigned, seven_bits = _recipe(QuantType.QUInt8), _recipe(QuantType.QUInt8, reduce_range=True)
    x86_order = [unsigned, seven_bits] if cpu["vnni"] else [seven_bits, unsigned]
    order = [*x86_order, signed, default] if x86 else [signed, unsigned, default]
    return {_recipe_name(**recipe): recipe for recipe in order}


def _recipe(activation_type: QuantType, per_channel: bool = True, reduce_range: bool = False) -> dict:
    return {
        "activation_type": activation_type,
        "weight_type": QuantType.QInt8,
        "per_channel": per_channel,
        "reduce_range": reduce_range,
    }


def _recipe_name(activation_type: QuantType, weight_type: QuantType, per_channel: bool, reduce_range: bool) -> str:
    """Write a recipe in the field's short form, such as ``U8S8 per-channel reduce-range``."""
    letters = "".join("U8" if each == QuantType.QUInt8 else "S8" for each in (activation_type, weight_type))
    return " ".join([letters, *["per-channel"] * per_channel, *["reduce-range"] * reduce_range])


def pre_process(source: Path, target: Path) -> None:
    """Infer shapes and fuse what can be fused before quantization, as ONNX Runtime asks for."""
    with whole_file(target) as temporary:
        quant_pre_process(source, temporary, auto_merge=True)


def count_operators(path: Path) -> Counter:
    """Count the graph's nodes by operator."""
    return Counter(node.op_type for node in onnx.load(path).graph.node)
