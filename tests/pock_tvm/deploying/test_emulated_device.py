"""Training on an emulated ARM device over TVM's RPC (scripts/emulated-device)."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import pock_tvm as pock
from pock_tvm.deploying.remote import RemoteTrainer
from pock_tvm.errors import ProgramError
from tests.pock_tvm.deploying.servers import Server, batches, build


def test_an_emulated_arm_device_trains_the_same(tmp_path, monkeypatch) -> None:
    python = Path(os.environ.get("POCK_EMULATED_DEVICE", "/opt/pock-arm")) / "aarch64-python"
    if not python.exists():
        pytest.skip(f"needs {python}: scripts/emulated-device makes it (POCK_EMULATED_DEVICE names another folder)")
    if not shutil.which("aarch64-linux-gnu-gcc"):
        if importlib.util.find_spec("ziglang") is None:
            pytest.skip("needs a linker for aarch64: gcc-aarch64-linux-gnu, or ziglang")
        linker = tmp_path / "aarch64-linux-gnu-gcc"
        linker.write_text(f'#!/bin/sh\nexec {sys.executable} -m ziglang cc -target aarch64-linux-gnu "$@"\n')
        linker.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    here = pock.Trainer(build(), threads=1)
    server = Server("rpc_server", python=python)
    try:
        with contextlib.closing(RemoteTrainer(build(target="raspberry-pi/4b-aarch64"), server.connect())) as there:
            for x, y in zip(*batches(20), strict=True):
                assert there.step(x, y, lr=0.05) == pytest.approx(here.step(x, y, lr=0.05), abs=1e-5)
            weights = there.weights()
            assert all(np.allclose(weights[name], array, atol=1e-5) for name, array in here.weights().items())
            with pytest.raises(ProgramError, match="is a aarch64-linux"):
                RemoteTrainer(here.program, there.connection)
    finally:
        server.kill()
