"""Programs in Metal's language: written and checked, for no machine here runs them."""

import io
import sys
import zipfile

import pytest
import torch

import pock_tvm as pock
from pock_tvm.device.errors import DeviceError
from tests.pock_tvm.device.gpu.networks import NETWORKS


@pytest.mark.parametrize("network, batch", NETWORKS)
def test_programs_are_within_the_limits(network, batch):
    torch.manual_seed(0)
    exported = torch.export.export(network().eval(), (batch(),))
    program = pock.compile(exported, target="metal", check=False, batch_norm="frozen")  # which checks each text
    with zipfile.ZipFile(io.BytesIO(program.library)) as library:
        texts = [library.read(name).decode() for name in library.namelist() if name != "library.json"]
    assert all("#include <metal_stdlib>" in text for text in texts)


@pytest.mark.skipif(sys.platform == "darwin", reason="where Metal is")
def test_without_metal_a_program_is_refused():
    exported = torch.export.export(torch.nn.Linear(4, 3), (torch.randn(2, 4),))
    program = pock.compile(exported, target="metal", check=False)
    with pytest.raises(
        DeviceError, match=r"Metal needs macOS and pyobjc-framework-Metal: pip install 'pock-tvm\[metal\]'"
    ):
        pock.Trainer(program)
