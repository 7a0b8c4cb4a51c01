"""Tunes a small network in eight bits for Hexagon by estimates, and counts what its kernels run before and after.

    python bench/hexagon_tune.py [--version v66 --version v73] [--trials 160] [--json out.json]

The command is `pock tune --measure static`, run to its end on a network of the layers in the tables of RESULTS.md. Then
each kernel in eight bits runs under qemu-hexagon on random bytes, with its default schedule and with the chosen one:
results are compared byte by byte, and packets counted. *Used*: packets of the multiply-adds alone by those run (see
bench/hexagon.py). *Of all products*: packets of the products that rescale are added, whatever else runs with them: one
`vmpy` of 64 int16 takes both multipliers of v66, and one of v73's (Clang's assembler refuses two in a packet, or one
and a `vrmpy`, on v66 and v68, and takes them on v73). Needs what bench/hexagon.py needs, but no data.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from hexagon import A_PACKET, BYTES, multiply_adds
from rich.console import Console
from rich.table import Table
from torch import nn
from tvm import tirx

import pock_tvm as pock
from pock_tvm.compiler.database import Database
from pock_tvm.compiler.rebuild import target_of
from pock_tvm.deploying.c_source import kernel_definitions
from pock_tvm.device.program import kernel_calls
from schedules.decisions import DEFAULTS, Decisions
from schedules.kernels.quantized import WORD
from tests.schedules import hexagon

SIZE = 64
HALVES = {"v66": 64, "v73": 128}
"""int16 that a packet multiplies."""
LEAST = 50_000
"""Multiply-adds of the kernels in the table."""
COMMAND = "from pock_tvm.cli import main; main()"


class Network(nn.Module):
    """Layers as in MCUNet: the stem, and blocks of 1x1 and depthwise convolutions, two with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Sequential(*_layer(3, 16, 3, 2), *_layer(16, 16, 3, 1, depthwise=True), nn.Conv2d(16, 8, 1))
        self.narrow = nn.Sequential(*_layer(8, 48, 1), *_layer(48, 48, 5, 2, depthwise=True), nn.Conv2d(48, 16, 1))
        self.same = nn.Sequential(*_layer(16, 64, 1), *_layer(64, 64, 7, 1, depthwise=True), nn.Conv2d(64, 16, 1))
        self.deep = nn.Sequential(*_layer(16, 96, 1), *_layer(96, 96, 3, 2, depthwise=True), nn.Conv2d(96, 40, 1))
        self.wide = nn.Sequential(*_layer(40, 192, 1), *_layer(192, 192, 3, 1, depthwise=True), nn.Conv2d(192, 40, 1))
        self.classifier = nn.Linear(40, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scores of images."""
        x = self.narrow(self.start(x))
        x = self.deep(x + self.same(x))
        x = x + self.wide(x)
        return self.classifier(x.mean((2, 3)))


def _layer(inputs: int, outputs: int, taps: int, stride: int = 1, *, depthwise: bool = False) -> list[nn.Module]:
    groups = inputs if depthwise else 1
    return [nn.Conv2d(inputs, outputs, taps, stride, taps // 2, groups=groups), nn.ReLU()]


@dataclass(frozen=True)
class Row:
    """Packets that a kernel runs."""

    version: str
    kernel: str
    shapes: str
    multiply_adds: int
    rescaled: int
    """Products that rescale."""
    default: int
    tuned: int
    decisions: str

    def used(self, packets: int) -> float:
        """Bound of the multiply-adds by packets."""
        return self.multiply_adds / BYTES / A_PACKET / packets

    def of_all(self, packets: int) -> float:
        """Bound of all products by packets."""
        return self.used(packets) + self.rescaled / HALVES[self.version] / packets


def compiled(version: str) -> pock.Program:
    """Return a program whose head trains, and whose other layers are in eight bits."""
    torch.manual_seed(0)
    exported = torch.export.export(Network().eval(), (torch.randn(1, 3, SIZE, SIZE),))
    data = np.random.default_rng(0).standard_normal((4, 3, SIZE, SIZE)).astype("float32")
    scheme = pock.Scheme({"*": "frozen", "classifier.*": "full"})
    return pock.compile(
        exported, scheme=scheme, target=f"hexagon-{version}", frozen="int8", calibrate_with=data, check=False
    )


def rescaled(name: str, func: tirx.PrimFunc) -> int:
    """Return how many numbers a kernel over planes multiplies to rescale its sums, and a residual."""
    words = int(np.prod([int(extent) for extent in func.params[-1].ty.shape]))
    times = {"planes_layer_sum": 2, "planes_layer": 1}.get(name.rpartition("_")[0], 0)
    return WORD * words * times


def operands(func: tirx.PrimFunc) -> list[np.ndarray]:
    """Return random operands of a kernel in eight bits: words and bytes, biases, shifts, factors."""
    rng, found = np.random.default_rng(0), []
    for param in func.params[:-1]:
        shape, kind = [int(extent) for extent in param.ty.shape], str(param.ty.dtype)
        if kind.startswith("float"):
            found.append(rng.standard_normal(shape).astype(kind))
        elif len(shape) == 1:
            found.append(rng.integers(*((4, 12) if kind == "int32" else (2**10, 2**12)), shape).astype(kind))
        else:
            found.append(rng.integers(np.iinfo(kind).min, np.iinfo(kind).max, shape, kind))
    return found


def measured(func: tirx.PrimFunc, version: str, decisions: Decisions) -> tuple[int, bytes]:
    """Return the packets that a kernel runs, and its result."""
    with tempfile.TemporaryDirectory() as name:
        folder, arrays = Path(name), operands(func)
        program = hexagon.built(func, folder, version, decisions)
        for number, array in enumerate(arrays):
            array.tofile(folder / f"{number}.bin")
        packets, _ = hexagon.packets_run(program, version)
        return packets, (folder / f"{len(arrays)}.bin").read_bytes()


def rows(version: str, trials: int, folder: Path) -> list[Row]:
    """Tune for a version, and return its kernels.

    Raises
    ------
    RuntimeError
        A chosen schedule computes another result.
    """
    program = compiled(version)
    program.save(folder / "out.pock")
    options = ["--measure", "static", "--cost-model", "none", "--trials", str(trials)]
    command = [sys.executable, "-c", COMMAND, "tune", "out.pock", "--database", "tuned", *options, "-o", "tuned.pock"]
    subprocess.run(command, cwd=folder, check=True)
    target = hexagon.hexagon(version)
    database = Database(folder / "tuned", target_of(program), must_exist=True, estimated=True)
    called = {kernel for kernel, _ in kernel_calls(program.manifest["entries"]["train_step"])}
    found = []
    for name, func in kernel_definitions(program):
        count = multiply_adds(name, func) if name in called else 0
        if count < LEAST:
            continue
        chosen = database.tuned(func, target)
        packets, result = measured(func, version, DEFAULTS)
        tuned, same = measured(func, version, chosen.decisions) if chosen else (packets, result)
        if same != result:
            raise RuntimeError(f"{name}: {chosen} computes another result than the default")
        shapes = ", ".join("x".join(str(int(each)) for each in func.params[at].ty.shape) for at in (0, 1))
        decisions = ", ".join(f"{key} {value}" for key, value in chosen.decisions.items()) if chosen else ""
        found.append(Row(version, name, shapes, count, rescaled(name, func), packets, tuned, decisions))
    return found


def main(
    version: Annotated[list[str], typer.Option(help="Of the instruction set")] = ["v66", "v73"],  # noqa: B006
    trials: Annotated[int, typer.Option(help="Schedules to estimate, of all kernels")] = 160,
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures there")] = None,
) -> None:
    """Print and write the table."""
    found: list[Row] = []
    for each in version:
        with tempfile.TemporaryDirectory() as folder:
            found += rows(each, trials, Path(folder))
    heads = "version", "kernel", "operands", "multiply-adds"
    counted = "packets", "used", "of all products"
    table = Table(*heads, *counted, *(f"tuned: {each}" for each in counted), "of the default", "decisions")
    for row in found:
        cells = [
            f"{packets:,} {row.used(packets):.2f} {row.of_all(packets):.2f}".split()
            for packets in (row.default, row.tuned)
        ]
        named = row.version, row.kernel, row.shapes, f"{row.multiply_adds:,}"
        table.add_row(*named, *cells[0], *cells[1], f"{row.default / row.tuned:.2f}x", row.decisions)
    Console(width=220).print(table)
    if to is not None:
        to.write_text(json.dumps([asdict(row) for row in found], indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
