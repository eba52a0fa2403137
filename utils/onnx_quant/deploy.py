"""The model as it is deployed: from a picture as people have it to calibrated probabilities, in one file."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, compose, parser

from utils.config import THREADS, InputError
from utils.files import whole_file
from utils.onnx_quant.novelty_output import add_novelty
from utils.predict import Classifier

SAME_ANSWERS = 0.995  # of the photos, at least, for a resize inside the graph to be as good as Pillow's
RESIZE = {"bilinear": 'mode = "linear"', "bicubic": 'mode = "cubic", cubic_coeff_a = -0.5, exclude_outside = 1'}
PREPARE = """<ir_version: {ir_version}, opset_import: ["": {opset}]>
prepare (uint8[batch, {height}, {width}, 3] image) => (float[batch, 3, {size}, {size}] image_prepared) <
    int64[1] image_width = {{{size}}}, int64[1] image_height = {{{size}}},
    float image_black = {{0}}, float image_white = {{255}},
    float[3] image_factor = {{{factor}}}, float[3] image_offset = {{{offset}}}
> {{
    image_pixels = Cast <to = 1> (image)
    {resize}
    image_scaled = Mul (image_resized, image_factor)
    image_normalized = Sub (image_scaled, image_offset)
    image_prepared = Transpose <perm = [0, 3, 1, 2]> (image_normalized)
}}"""
# as Pillow does it: first the rows, then the columns, each rounded to 8 bits; bicubic overshoots. Channels stay last:
# ONNX Runtime 1.32 breaks a Resize with axes when it moves a Transpose over it
RESIZE_NODES = """image_wide = Resize <antialias = 1, axes = [2], {mode}> (image_pixels, , , image_width)
    image_wide_whole = Round (image_wide)
    image_wide_clipped = Clip (image_wide_whole, image_black, image_white)
    image_high = Resize <antialias = 1, axes = [1], {mode}> (image_wide_clipped, , , image_height)
    image_high_whole = Round (image_high)
    image_resized = Clip (image_high_whole, image_black, image_white)"""
KEEP_NODE = "image_resized = Identity (image_pixels)"
ANSWER = """<ir_version: {ir_version}, opset_import: ["": {opset}]>
answer (float[batch, classes] logits) => (float[batch, classes] probabilities) <
    float temperature = {{{temperature}}}
> {{
    logits_tempered = Div (logits, temperature)
    probabilities = Softmax <axis = 1> (logits_tempered)
}}"""


def write_checked(
    source: Path, target: Path, details: dict, photos: Sequence[Path], expected: np.ndarray
) -> tuple[bool, float]:
    """Write a deployable file that takes photos of any size, or, should its answers differ, of one size alone.

    `expected` (N,) are the answers of `source` to `photos` (N,) as the training's preprocessing prepares them. Returns
    whether any size will do, and the share of photos with the same answer. A checkpoint whose `details` have a
    `novelty` gives the file its second output.
    """
    model = onnx.load(source)
    if "novelty" in details:
        model = add_novelty(model, details["novelty"])
    for any_size in (True, False):
        if any_size and details["preprocessing"]["interpolation"] not in RESIZE:
            continue
        write_deployable(model, target, details["preprocessing"], details.get("temperature", 1.0), any_size)
        agreement = float((deployed_answers(target, photos) == expected).mean())
        if agreement >= SAME_ANSWERS:
            break
    return any_size, agreement


def write_deployable(
    source: Path | ModelProto, target: Path, preprocessing: dict, temperature: float = 1.0, any_size: bool = True
) -> None:
    """Put the preprocessing before a model and softmax behind it, both in float, outside what is quantized.

    The file maps `image` uint8 (batch, height, width, 3) to `probabilities` float32 (batch, classes): softmax of the
    logits over `temperature` (Guo et al. 2017, arXiv 1706.04599). With `any_size` it resizes as Pillow does, otherwise
    it takes the training's size alone. Metadata and further outputs of `source` stay. Raises InputError for an
    interpolation that ONNX has no equal of.
    """
    model = ModelProto()
    model.CopyFrom(onnx.load(source) if isinstance(source, Path) else source)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    del model.metadata_props[:]  # merging would take them for a conflict
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    blanks = _preparation(preprocessing, any_size)
    before = parser.parse_model(PREPARE.format(ir_version=model.ir_version, opset=opset, **blanks))
    after = parser.parse_model(ANSWER.format(ir_version=model.ir_version, opset=opset, temperature=float(temperature)))
    whole = compose.merge_models(before, model, io_map=[("image_prepared", model.graph.input[0].name)])
    whole = compose.merge_models(whole, after, io_map=[(model.graph.output[0].name, "logits")])
    whole.graph.output.sort(key=lambda value: value.name != "probabilities")
    onnx.helper.set_model_props(whole, metadata)
    onnx.checker.check_model(whole, full_check=True)
    with whole_file(target) as temporary:
        onnx.save(whole, temporary)


def deployed_answers(path: Path, photos: Sequence[Path]) -> np.ndarray:
    """Classify photos, each as it lies on the disk, with a deployed file; → class positions (N,)."""
    classifier = Classifier(path, threads=1)
    with ThreadPoolExecutor(THREADS) as pool:
        return np.array([found.argmax() for found in pool.map(classifier.probabilities, photos)])


def _preparation(preprocessing: dict, any_size: bool) -> dict[str, object]:
    """Fill the blanks of `PREPARE`; (pixel / 255 − mean) / std is one multiplication and one subtraction."""
    size, interpolation = preprocessing["image_size"], preprocessing["interpolation"]
    if any_size and interpolation not in RESIZE:
        raise InputError(f"no ONNX operator resizes by {interpolation!r}: write the model with any_size=False")
    mean, std = np.array(preprocessing["mean"]), np.array(preprocessing["std"])
    return {
        "size": size,
        "height": "height" if any_size else size,
        "width": "width" if any_size else size,
        "factor": ", ".join(map(str, (1 / (255 * std)).tolist())),
        "offset": ", ".join(map(str, (mean / std).tolist())),
        "resize": RESIZE_NODES.format(mode=RESIZE[interpolation]) if any_size else KEEP_NODE,
    }
