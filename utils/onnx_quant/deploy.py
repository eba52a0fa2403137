"""The model as it is deployed: from a picture as people have it to calibrated probabilities, in one file."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pandas as pd
from onnx_ir.passes import common as passes
from onnxscript import OnnxFunction, script
from onnxscript import opset20 as op

from utils.config import THREADS, InputError
from utils.files import whole_file
from utils.onnx_quant.graph import CHANNELS_LAST, infer_shapes, strip
from utils.predict import Classifier
from utils.session import open_session, predict_formula, run_session

SAME_ANSWERS = 0.995  # of the photos, at least, for a resize inside the graph to be as good as Pillow's
RESIZE = {"bilinear": "linear", "bicubic": "cubic"}  # Pillow's interpolation → mode of ONNX's Resize


@script()
def resize(image, size, mode: str):
    """Resize photos uint8 (N, H, W, 3) to `size` (2,) as Pillow does: in 8 bits, as floats would take 4 times as much.

    Channels stay last: ONNX Runtime 1.32 breaks a Resize with axes when it moves a Transpose over.
    """
    return op.Resize(
        image, None, None, size, antialias=1, axes=[1, 2], mode=mode, cubic_coeff_a=-0.5, exclude_outside=1
    )


@script()
def normalize(pixels, factor, offset):
    """Compute (pixel / 255 − mean) / std, as one multiplication and one subtraction; → (N, 3, H, W)."""
    return op.Transpose(op.Cast(pixels, to=1) * factor - offset, perm=[0, 3, 1, 2])


@script()
def softmax(logits, temperature):
    """Turn logits (N, C) into calibrated probabilities."""
    return op.Softmax(logits / temperature, axis=1)


@script()
def distance(features, weight, bias, centers, mean, deviations, rest):
    """Compute what `Detector.distances` in utils/train/novelty.py does."""
    tiny = op.Constant(value_float=1e-12)
    directions = features / op.Max(op.ReduceL2(features, [1]), tiny)
    places = op.Gemm(directions, op.Cast(weight, to=1), bias, transB=1)
    of_classes = op.ReduceSumSquare(op.Unsqueeze(places, [1]) - centers, [2], keepdims=0)
    whole = op.ReduceSumSquare(directions - op.Cast(mean, to=1), [1], keepdims=0)
    along_axes = op.ReduceSumSquare(places * deviations, [1], keepdims=0)
    off_axes = op.Relu(whole - along_axes) / (rest * rest)
    return op.Sqrt(op.ReduceMin(of_classes, [1], keepdims=0) + off_axes)


def write_checked(
    source: Path, target: Path, details: dict, photos: Sequence[Path], expected: np.ndarray
) -> tuple[bool, float]:
    """Write a deployable file that takes photos of any size, or, should its predictions differ, of one size alone.

    `expected` (N,) are the predictions of `source` to `photos` (N,) as the training's preprocessing prepares them.
    Returns whether any size will do, and the share of photos with the same prediction. A checkpoint whose `details`
    have a `novelty` gives the file its second output.
    """
    agreement = 0.0
    if details["preprocessing"]["interpolation"] in RESIZE:
        write_deployable(source, target, details)
        agreement = float((predict_deployed(target, photos) == expected).mean())
    if agreement >= SAME_ANSWERS:
        return True, agreement
    write_deployable(source, target, details, any_size=False)
    return False, float((predict_deployed(target, photos) == expected).mean())


def write_deployable(source: Path, target: Path, details: dict, any_size: bool = True) -> None:
    """Put the preprocessing before a model and softmax behind it, both in float, outside what is quantized.

    The file maps `image` uint8 (batch, height, width, 3) to `probabilities` float32 (batch, classes): softmax of the
    logits over the temperature in `details` (Guo et al. 2017, arXiv 1706.04599). With `any_size` it resizes as Pillow
    does, otherwise it takes the training's size alone. The metadata of `source` stay, and `self_check` says what the
    file predicts of `session.formula_pictures`. Raises InputError for an
    interpolation that ONNX has no equal of.
    """
    model = ir.load(source)
    if "novelty" in details:
        add_novelty(model, details["novelty"])
    _take_photos(model, details["preprocessing"], any_size)
    _give_probabilities(model, details.get("temperature", 1.0))
    passes.InlinePass()(model)
    strip(model)
    model.graph.sort()
    with whole_file(target) as temporary:
        ir.save(model, temporary)
        onnx.checker.check_model(temporary, full_check=True)
        expected = predict_formula(open_session(temporary, precise=True))
        model.metadata_props["self_check"] = json.dumps(expected.round(5).tolist())
        ir.save(model, temporary)


def predict_deployed(path: Path, photos: Sequence[Path]) -> np.ndarray:
    """Classify photos, each as it lies on the disk, with a deployed file; → class positions (N,)."""
    classifier = Classifier(path, threads=1)
    with ThreadPoolExecutor(THREADS) as pool:
        return np.array([found.argmax() for found in pool.map(classifier.probabilities, photos)])


def _take_photos(model: ir.Model, preprocessing: dict, any_size: bool) -> None:
    """Let a model take photos in the place of its input."""
    size = preprocessing["image_size"]
    interpolation = preprocessing["interpolation"]
    if any_size and interpolation not in RESIZE:
        raise InputError(f"no ONNX operator resizes by {interpolation!r}: write the model with any_size=False")
    mean = np.array(preprocessing["mean"])
    std = np.array(preprocessing["std"])
    sides = ["height", "width"] if any_size else [size, size]
    pixels = image = ir.val("image", ir.DataType.UINT8, ["batch", *sides, 3])
    if any_size:
        pixels = _compute(model, resize, image, {"size": np.array([size, size])}, mode=RESIZE[interpolation])
    constants = {"factor": np.float32(1 / (255 * std)), "offset": np.float32(mean / std)}
    prepared = _compute(model, normalize, pixels, constants)
    ir.convenience.replace_all_uses_with(model.graph.inputs[0], prepared)
    model.graph.inputs[0] = image


def _give_probabilities(model: ir.Model, temperature: float) -> None:
    """Let a model give out probabilities in the place of its logits."""
    logits = model.graph.outputs[0]
    probabilities = _compute(model, softmax, logits, {"temperature": np.float32(temperature)})
    probabilities.name = "probabilities"
    probabilities.type = logits.type
    probabilities.shape = logits.shape
    model.graph.outputs[0] = probabilities


def add_novelty(model: ir.Model, detector: dict[str, np.ndarray]) -> None:
    """Give a classifier, in float or INT8, a second output `novelty` float32 (batch,), from the last block's features.

    `detector` has the arrays of `utils.train.novelty.Detector`, in the order of torch's features.
    """
    infer_shapes(model)
    features = _last_features(model.graph)
    order = _order_of_features(features)
    constants = {name: np.asarray(values) for name, values in detector.items()}
    constants.update(weight=constants["weight"][:, order], mean=constants["mean"][order])
    novelty = _compute(model, distance, features, constants)
    novelty.name = "novelty"
    novelty.type = ir.TensorType(ir.DataType.FLOAT)
    novelty.shape = ir.Shape(["batch"])
    model.graph.outputs.append(novelty)


def _compute(model: ir.Model, function: OnnxFunction, first: ir.Value, constants: dict, **attributes) -> ir.Value:
    """Let a model compute a function of one of its tensors, and of constants (name → array); → the result."""
    definition = ir.from_proto(function.to_function_proto())
    model.functions[definition.identifier()] = definition
    tape = ir.tape.Tape(model.graph)
    names = [parameter.name for parameter in definition.inputs[1:]]
    given = [tape.initializer(ir.tensor(constants[name], name=f"{function.name}_{name}")) for name in names]
    return tape.op(function.name, [first, *given], attributes, domain=definition.domain)


def _last_features(graph: ir.Graph) -> ir.Value:
    """Find what the network's own last layer sees: of joined or split blocks the last one's features."""
    layer = graph.outputs[0].producer()
    if layer.op_type == "Sum":  # see `graph.split_last_layer`
        layer = layer.inputs[-1].producer()
    if layer.op_type not in ("Gemm", "MatMul"):
        layer = [node for node in graph if node.op_type in ("Gemm", "MatMul")][-1]
    features = layer.inputs[0]
    joined = features.producer()
    return joined.inputs[-1] if joined and joined.op_type == "Concat" else features


def _order_of_features(features: ir.Value) -> np.ndarray:
    """Say which of torch's features each of a tensor's is: see `graph.flatten_channels_last`."""
    node = features.producer()
    while node and node.op_type in ("QuantizeLinear", "DequantizeLinear", "Reshape", "Flatten"):
        node = node.inputs[0].producer()
    order = np.arange(features.shape[-1])
    if node and node.op_type == "Transpose" and node.attributes.get_ints("perm") == CHANNELS_LAST:
        order = order.reshape(node.inputs[0].shape[1:]).transpose(1, 2, 0).ravel()
    return order


def predict(path: Path, details: dict, images: np.ndarray) -> pd.DataFrame:
    """Predict images (N, 3, H, W) by a file, with exact sums; → columns: class, its position, and unknown.

    Without a `novelty` in the checkpoint's `details`, none is unknown.
    """
    model = ir.load(path)
    if "novelty" in details:
        add_novelty(model, details["novelty"])
        passes.InlinePass()(model)
    session = open_session(ir.to_proto(model).SerializeToString(), threads=1, precise=True)
    logits, *distances = run_session(session, images)
    unknown = distances[0] > details["novelty_above"] if distances else False
    return pd.DataFrame({"class": logits.argmax(axis=1), "unknown": unknown})
