"""INT8 for the CPU at hand."""

from collections import Counter
from pathlib import Path

import onnx
import torch
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.shape_inference import quant_pre_process

from utils.config import whole_file


def cpu_info() -> dict:
    """Name the CPU and say whether it multiplies 8-bit numbers natively (VNNI on x86, dot product on ARM)."""
    found = torch.cpu.get_capabilities()
    vnni = any(found.get(flag, False) for flag in ("avx512_vnni", "avx_vnni"))
    return {"name": found.get("cpu_name", ""), "architecture": found.get("architecture", ""), "vnni": vnni}


def quantization_types(cpu: dict) -> dict:
    """Choose the types for `quantize_static` by CPU, as ONNX Runtime's documentation advises.

    x86 wants unsigned activations and signed weights; without VNNI its 16-bit sums overflow, so weights keep 7 bits
    (`reduce_range`). ARM wants both signed.
    """
    x86 = cpu["architecture"].lower() in {"x86_64", "amd64", "x86"}
    return {
        "activation_type": QuantType.QUInt8 if x86 else QuantType.QInt8,
        "weight_type": QuantType.QInt8,
        "reduce_range": x86 and not cpu["vnni"],
    }


def recipe_name(types: dict, per_channel: bool) -> str:
    """Name a recipe in the field's short form, such as ``U8S8 QDQ per-channel reduce-range``."""
    both = types["activation_type"], types["weight_type"]
    letters = "".join("U8" if each == QuantType.QUInt8 else "S8" for each in both)
    return " ".join([letters, "QDQ", *["per-channel"] * per_channel, *["reduce-range"] * types["reduce_range"]])


def pre_process(source: Path, target: Path) -> None:
    """Infer shapes and fuse what can be fused before quantization, as ONNX Runtime asks for."""
    with whole_file(target) as temporary:
        quant_pre_process(source, temporary, auto_merge=True)


def count_operators(path: Path) -> Counter:
    """Count the graph's nodes by operator."""
    return Counter(node.op_type for node in onnx.load(path).graph.node)
