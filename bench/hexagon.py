"""Counts what kernels for Hexagon run, without a DSP: packets under qemu-hexagon, vector instructions in their code.

    python bench/hexagon.py [--version v66 --version v73] [--count 10] [--size 64] [--json out.json]

*Integers*: of MCUNet in eight bits (batch 1), the kernels with most multiply-adds. Each is a program of its
own, whose packets QEMU traces. The *bound* is the packets of its multiply-adds alone: `vrmpy` does 128, and a packet
takes two by numbers, on every version. *Used*: the bound by the packets; 1 is a kernel whose multipliers never wait.
Results are compared with NumPy's in `tests/schedules/test_word_planes.py`. A packet is no cycle: caches and threads are
not in it.

*Floats*: of the same network's step, trained as a whole, kernels with vectors of floats (`hvx-qfloat`): vector
instructions in their code. No emulator executes these.

Needs clang-19, lld-19, llvm-19 and the emulators of scripts/install-emulators, and ../shared/data.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tvm
import typer
from rich.console import Console
from rich.table import Table
from step_models import MCUNET
from tvm import tirx

import pock_tvm as pock
from pock_tvm.compiler.targets import kernel_target, resolve_target
from pock_tvm.deploying.c_source import kernel_definitions
from pock_tvm.device.program import kernel_calls
from relay_passes.analysis.kernel_costs import kernel_costs
from tests.schedules import hexagon

A_PACKET = 2
"""``vrmpy`` of a vector and a number that a packet takes, on v66 to v73: Clang's assembler refuses more. Of two vectors
v66 and v68 take one."""
BYTES = 128
FLOATS = ("v68", "v73", "v75")
FLOAT = re.compile(r"\bqf32\b|\bv\d+\.sf\b")


@dataclass(frozen=True)
class Row:
    """Packets that a kernel runs."""

    version: str
    kernel: str
    multiply_adds: int
    packets: int
    vectors: int
    """Vector instructions run."""

    @property
    def bound(self) -> float:
        """Packets of the multiply-adds alone."""
        return self.multiply_adds / BYTES / A_PACKET

    @property
    def used(self) -> float:
        """Bound by packets."""
        return self.bound / self.packets


def network(size: int) -> torch.export.ExportedProgram:
    """Return MCUNet at a size of pictures."""
    module = torch.export.load(MCUNET).module(check_guards=False)
    module._forward_pre_hooks.clear()  # they hold it to 128 px
    return torch.export.export(module, (torch.zeros(1, 3, size, size),))


def in_eight_bits(exported: torch.export.ExportedProgram, size: int, version: str) -> pock.Program:
    """Return a program whose head trains, and whose other layers are in eight bits."""
    data = np.random.default_rng(0).standard_normal((4, 3, size, size)).astype("float32")
    scheme = pock.Scheme({"*": "frozen", "classifier.*": "full"})
    return pock.compile(
        exported, scheme=scheme, target=f"hexagon-{version}", frozen="int8", calibrate_with=data, batch_norm="frozen",
        check=False,
    )  # fmt: skip


def multiply_adds(name: str, func: tirx.PrimFunc) -> int:
    """Return the multiply-adds of a product in eight bits; 0 for other kernels."""
    cost = kernel_costs(tvm.IRModule({name: func}), [])[name]
    return int(cost["flops"] / 2) if cost["kind"].startswith("int8") else 0


def measured(func: tirx.PrimFunc, version: str, folder: Path) -> tuple[int, int]:
    """Return the packets and the vector instructions that a kernel runs."""
    program = hexagon.built(func, folder, version)
    for number, param in enumerate(func.params[:-1]):
        size = int(np.prod([int(n) for n in param.ty.shape])) * np.dtype(str(param.ty.dtype)).itemsize
        (folder / f"{number}.bin").write_bytes(bytes(size))
    return hexagon.packets_run(program, version)


def integers(exported: torch.export.ExportedProgram, size: int, version: str, count: int) -> list[Row]:
    """Return the kernels with most multiply-adds."""
    program = in_eight_bits(exported, size, version)
    called = {kernel for kernel, _ in kernel_calls(program.manifest["entries"]["train_step"])}
    definitions = [(name, func) for name, func in kernel_definitions(program) if name in called]
    sizes = {name: (multiply_adds(name, func), func) for name, func in definitions}
    largest = sorted(sizes, key=lambda name: -sizes[name][0])[:count]
    rows = []
    for name in largest:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(Row(version, name, sizes[name][0], *measured(sizes[name][1], version, Path(folder))))
    return rows


def floats(definitions: Sequence[tuple[str, tirx.PrimFunc]], version: str) -> tuple[int, int]:
    """Return how many kernels have vectors of floats, and these vectors' instructions."""
    named = {"kind": "llvm", "mtriple": "hexagon-unknown-linux-musl", "mcpu": f"hexagon{version}", "num-cores": 1}
    features = [f"+hvx{version}", "+hvx-length128b", "+hvx-qfloat"]
    target = kernel_target(resolve_target(named | {"mattr": features, "vector-width": 1024}))
    counts = []
    for name, func in definitions:
        mod = target.lower(target.schedule(func).with_attr("global_symbol", name))
        text = tvm.get_global_func("target.build.llvm")(mod, target.llvm).inspect_source("asm")
        counts.append(len(FLOAT.findall(text)))
    return sum(map(bool, counts)), sum(counts)


def main(
    version: Annotated[list[str], typer.Option(help="Of the instruction set")] = ["v66", "v73"],  # noqa: B006
    count: Annotated[int, typer.Option(help="Kernels of each version")] = 10,
    size: Annotated[int, typer.Option(help="Of the pictures")] = 64,
    with_floats: Annotated[bool, typer.Option(help="Count vectors of floats, too")] = True,
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures there")] = None,
) -> None:
    """Print and write both tables."""
    exported = network(size)
    rows = [row for each in version for row in integers(exported, size, each, count)]
    table = Table("version", "kernel", "multiply-adds", "packets", "vector instructions", "bound", "used")
    for row in rows:
        numbers = (row.multiply_adds, row.packets, row.vectors, round(row.bound))
        table.add_row(row.version, row.kernel, *(f"{number:,}" for number in numbers), f"{row.used:.2f}")
    Console(width=120).print(table)
    definitions = []
    if with_floats:
        program = pock.compile(exported, target="hexagon-v73", batch_norm="frozen", check=False)
        definitions = list(kernel_definitions(program))
    vectors = {each: floats(definitions, each) for each in FLOATS if with_floats}
    for each, (kernels, instructions) in vectors.items():
        text = f"{each}: {kernels} of {len(definitions)} kernels, {instructions:,} instructions of vectors of floats"
        Console(width=120).print(text)
    if to is not None:
        found = {"integers": [asdict(row) | {"used": row.used} for row in rows], "floats": vectors}
        to.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
