"""The integers of weights, which the INT8 files of one network have in common."""

import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
from onnx import TensorProto
from onnxruntime.quantization import qdq_quantizer

OF_WEIGHTS = ("compute_data_quant_params", "quantize_onnx_initializer")  # pure functions of ONNX Runtime's


@contextmanager
def quantized_once() -> Iterator[None]:
    """Let ONNX Runtime quantize the same weights once within this block, however many files it writes.

    Weights do not depend on calibration, and to go through their channels, one by one, takes most of the time of a
    `quantize_static`. The files are the same, bit for bit.
    """
    before = {name: getattr(qdq_quantizer, name) for name in OF_WEIGHTS}
    with patch.multiple(qdq_quantizer, **{name: _remember(function) for name, function in before.items()}):
        yield


def _remember(function: Callable) -> Callable:
    known = {}

    def answer(*arguments: object, **options: object) -> object:
        key = (*map(_content, arguments), *options.items())
        if key not in known:
            known[key] = function(*arguments, **options)
        found = known[key]  # of which whoever asks gets a copy of their own, to change
        return tuple(array.copy() for array in found) if isinstance(found, tuple) else copy.deepcopy(found)

    return answer


def _content(argument: object) -> object:
    """Stand for an argument, in a key."""
    if isinstance(argument, np.ndarray):
        return argument.dtype, argument.shape, hashlib.sha256(argument.tobytes()).digest()
    if isinstance(argument, TensorProto):
        return hashlib.sha256(argument.SerializeToString()).digest()
    return argument
