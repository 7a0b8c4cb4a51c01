"""Programs for ARM, run under an emulator: they train as those for this machine do."""

from __future__ import annotations

import ctypes
import fnmatch
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pock_tvm as pock
from pock_tvm.device import trainer as trainers

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
pytestmark = pytest.mark.skipif(
    not (shutil.which(COMPILER) and EMULATOR), reason="needs Debian's gcc-aarch64-linux-gnu and qemu-user-static"
)


class Emulated:
    """The entry points of a library for ARM. (Takes the place of :class:`pock_tvm.device.runtime.Library`.)"""

    def __init__(self, folder: Path, program: pock.Program) -> None:
        self.folder, self.program = folder, program
        (folder / "program.so").write_bytes(program.library)
        source = Path(__file__).with_name("arm_machine.c")
        linked = ["-Wl,--no-as-needed", "-ldl", "-lm"]  # a program expects the mathematics of its process
        subprocess.run([COMPILER, "-O1", "-w", "-rdynamic", source, "-o", folder / "machine", *linked], check=True)

    def table(self, addresses: Sequence[int]) -> Sequence[int]:
        return addresses

    def run(self, entry: str, table: Sequence[int]) -> None:
        known = self.program.manifest["entries"][entry]
        sizes = [int(np.prod(each["shape"])) * np.dtype(each["dtype"]).itemsize for each in known["table"]]
        sizes.append(known["arena_bytes"])
        memory = self.folder / "memory"
        with memory.open("wb") as file:
            file.write(np.int64(len(sizes)).tobytes())
            for size, address in zip(sizes, table, strict=True):
                file.write(np.int64(size).tobytes() + ctypes.string_at(address, size))
        command = [
            EMULATOR,
            "-L",
            "/usr/aarch64-linux-gnu",
            self.folder / "machine",
            self.folder / "program.so",
            memory,
        ]
        done = subprocess.run([*command, f"__tvm_ffi_{entry}"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        written, at = memory.read_bytes(), 8
        for size, address in zip(sizes, table, strict=True):
            ctypes.memmove(address, written[at + 8 : at + 8 + size], size)
            at += 8 + size


class Attention(nn.Module):
    """Tokens: an embedding, one block of a transformer, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 24)
        self.block = nn.TransformerEncoderLayer(24, 3, 40, batch_first=True, dropout=0.0, activation="gelu")
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.table(x)).mean(1))


def convolutions() -> nn.Module:
    """Kernels with a register tile, Winograd's, depthwise ones, and widths that no vector divides."""
    depthwise = nn.Conv2d(33, 33, 5, stride=2, padding=2, groups=33)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 33, 3, padding=1), nn.ReLU6(), depthwise, nn.ReLU(),
        nn.Conv2d(33, 7, 1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(7 * 64, 5),
    )  # fmt: skip


def images() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = {
    "convolutions": (convolutions, images),
    "attention": (Attention, lambda: torch.arange(4 * 9).reshape(4, 9) % 20),
}
SCHEMES: dict[str, dict[str, Any]] = {
    "full": {"*": "full"},
    "sparse": {"*": "frozen", "*.bias": "full", "*.weight": 0.5, "*norm*": "full"},
    "last": {"*": "frozen", "9.*": "full", "head.*": "full"},
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_program_for_arm_trains_the_same(
    network: str, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    make, data = NETWORKS[network]
    x, y = data(), np.arange(4) % 5
    exported = torch.export.export(make().eval(), (x,))
    names = list(exported.state_dict)
    rules = {glob: what for glob, what in SCHEMES[scheme].items() if fnmatch.filter(names, glob)}
    options = {"scheme": pock.Scheme(rules), "optimizer": pock.SGD(momentum=0.9)}
    here = pock.Trainer(pock.compile(exported, **options))
    program = pock.compile(exported, target="raspberry-pi/4b-aarch64", **options)
    monkeypatch.setattr(trainers, "load_library", lambda _: Emulated(tmp_path, program))
    monkeypatch.setattr(trainers, "machine_triple", lambda *_: "aarch64-linux")
    there = pock.Trainer(program)
    before = here.weights()
    for _ in range(3):
        assert there.step(x.numpy(), y, lr=0.05) == pytest.approx(here.step(x.numpy(), y, lr=0.05), rel=1e-4)
    np.testing.assert_allclose(there.predict(x.numpy()), here.predict(x.numpy()), rtol=1e-3, atol=1e-4)
    after = there.weights()
    for name, array in here.weights().items():
        update = array - before[name]
        np.testing.assert_allclose(
            after[name] - before[name], update, atol=1e-3 * np.abs(update).max(initial=1e-6), err_msg=name
        )
