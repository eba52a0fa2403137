"""Export: one file with a free batch size that gives PyTorch's answers and explains itself."""

import copy
import json

import numpy as np
import onnx
import pytest
import torch
from nets import CLASSES, PREPROCESSING, to_onnx

from utils.config import InputError
from utils.model import ConvNet
from utils.onnx_quant.export import check_parity
from utils.onnx_quant.graph import count_operators
from utils.session import open_session, read_metadata

IMAGES = np.random.default_rng(0).normal(size=(9, 3, 64, 64)).astype(np.float32)
FREE_BATCH = '            dynamic_shapes=({0: torch.export.Dim("batch")},),\n'
CONTIGUOUS = ".to(memory_format=torch.contiguous_format)"


def test_logits_are_pytorchs_at_any_batch_size(conv_net, conv_net_file):
    parity = check_parity(conv_net, conv_net_file, IMAGES, batch_sizes=(1, 2, 7))
    assert list(parity.index) == [1, 2, 7]
    assert parity["max_abs_diff"].max() <= 1e-4


def test_a_file_that_answers_unlike_torch_is_refused(conv_net_file):
    torch.manual_seed(1)
    with pytest.raises(InputError, match=r"logits are \de[+-]\d+ of the largest away from PyTorch's.* another ARCH"):
        check_parity(ConvNet(3).eval(), conv_net_file, IMAGES, batch_sizes=(4,))


def test_frozen_batch_is_refused(conv_net, tmp_path):
    frozen = to_onnx(conv_net, tmp_path / "frozen.onnx", edits={FREE_BATCH: ""})
    with pytest.raises(InputError, match=r"frozen\.onnx: the batch axis of 'input' is frozen at 2.*dynamic_shapes"):
        check_parity(conv_net, frozen, IMAGES, batch_sizes=(2,))


def test_network_in_training_mode_is_exported_for_prediction(conv_net, conv_net_file, tmp_path):
    """The same file again, byte for byte: results that are remembered by it are found again."""
    network = copy.deepcopy(conv_net).train()
    again = to_onnx(network, tmp_path / "again.onnx", classes=CLASSES, preprocessing=PREPROCESSING)
    assert again.read_bytes() == conv_net_file.read_bytes()


def test_file_explains_itself_and_names_no_path_of_this_machine(conv_net_file):
    content = conv_net_file.read_bytes()
    metadata = open_session(conv_net_file).get_modelmeta().custom_metadata_map
    assert read_metadata(open_session(conv_net_file))["classes"] == CLASSES
    assert json.loads(metadata["preprocessing"]) == PREPROCESSING
    assert b"site-packages" not in content and b".py" not in content
    onnx.checker.check_model(onnx.load(conv_net_file), full_check=True)


@pytest.fixture(scope="module")
def pooled():
    """A small network of timm with global pooling, laid out as `load_model` leaves it."""
    import timm

    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=3).eval().to(memory_format=torch.channels_last)


def test_pooling_and_flattening_leave_no_gather_behind(pooled, tmp_path):
    """OpenVINO answers wrongly behind one that is computed from the batch size once anything before it is INT8."""
    path = to_onnx(pooled, tmp_path / "net.onnx")
    assert not {"Gather", "Range", "Shape"} & set(count_operators(path))
    assert check_parity(pooled, path, IMAGES, batch_sizes=(1, 7))["max_abs_diff"].max() <= 1e-4


def test_torch_still_exports_a_gather_from_channels_last(pooled, tmp_path):
    """When this fails, the export need not change the memory format."""
    pooled.to(memory_format=torch.channels_last)
    path = to_onnx(pooled, tmp_path / "net.onnx", edits={CONTIGUOUS: ""})
    assert "Gather" in count_operators(path)
