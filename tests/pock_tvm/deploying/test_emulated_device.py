"""Training and tuning on an emulated ARM device over TVM's RPC (scripts/emulated-device)."""

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
from pock_tvm.deploying.endpoint import Endpoint
from pock_tvm.deploying.remote import RemoteTrainer
from pock_tvm.errors import ProgramError
from pock_tvm.tuning import search, verdicts
from tests.pock_tvm.deploying.servers import PATIENCE_S, Server, batches, build

SERVE = Path(__file__).parents[3] / "examples" / "remote" / "serve.py"
TARGET = "raspberry-pi/4b-aarch64"


@pytest.fixture
def python(tmp_path, monkeypatch) -> Path:
    """The device's Python, and a linker for it on the path."""
    found = Path(os.environ.get("POCK_EMULATED_DEVICE", "/opt/pock-arm")) / "aarch64-python"
    if not found.exists():
        pytest.skip(f"needs {found}: scripts/emulated-device makes it (POCK_EMULATED_DEVICE names another folder)")
    if not shutil.which("aarch64-linux-gnu-gcc"):
        if importlib.util.find_spec("ziglang") is None:
            pytest.skip("needs a linker for aarch64: gcc-aarch64-linux-gnu, or ziglang")
        linker = tmp_path / "aarch64-linux-gnu-gcc"
        linker.write_text(f'#!/bin/sh\nexec {sys.executable} -m ziglang cc -target aarch64-linux-gnu "$@"\n')
        linker.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return found


def test_an_emulated_arm_device_trains_the_same(python: Path) -> None:
    here = pock.Trainer(build(), threads=1)
    server = Server("rpc_server", python=python)
    try:
        with contextlib.closing(RemoteTrainer(build(target=TARGET), server.connect())) as there:
            for x, y in zip(*batches(20), strict=True):
                assert there.step(x, y, lr=0.05) == pytest.approx(here.step(x, y, lr=0.05), abs=1e-5)
            weights = there.weights()
            assert all(np.allclose(weights[name], array, atol=1e-5) for name, array in here.weights().items())
            with pytest.raises(ProgramError, match="is a aarch64-linux"):
                RemoteTrainer(here.program, there.connection)
    finally:
        server.kill()


def test_an_emulated_arm_device_is_tuned(python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the search to steps with what was chosen. Whatever was measured counts as faster."""
    if not (python.parent / "site" / "safetensors").exists():
        pytest.skip(f"needs safetensors in {python.parent}: scripts/emulated-device makes it anew")
    kernels, steps = verdicts.compare_kernels, verdicts.compare_steps
    monkeypatch.setattr(verdicts, "compare_kernels", lambda *given: dict.fromkeys(kernels(*given), (4.0, 3.0)))
    monkeypatch.setattr(verdicts, "compare_steps", lambda *given: (3.0 + min(1.0, *steps(*given)), 3.0))
    monkeypatch.setattr(search, "LEAST_GAIN", 0.0)
    options = {"scheme": pock.Scheme({"head.*": "full"}), "target": TARGET}
    default = build(**options)
    server = Server(SERVE, "--measure", python=python)
    try:
        server.connect().close()
        device = Endpoint(server.address, timeout=2 * PATIENCE_S)
        result = pock.tune(default, tmp_path / "records", trials=6, strategy="random", devices=[device])
        assert result.trials == 6 and result.failures == 0
        tuned = build(database=tmp_path / "records", **options)
        assert "tuned" in {kernel["schedule"] for kernel in tuned.manifest["kernels"].values()}
        with contextlib.closing(server.connect()) as connection:
            there = [RemoteTrainer(each, connection) for each in (default, result.program, tuned)]
            for x, y in zip(*batches(3), strict=True):
                losses = [trainer.step(x, y, lr=0.05) for trainer in there]
                assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    finally:
        server.kill()
