"""Targets by short name: what they resolve to, and what a name that nobody knows gets."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
import tvm
from tvm import te
from typer.testing import CliRunner

import pock_tvm as pock
from pock_tvm.cli import app
from pock_tvm.compiler.machines import MACHINES, Verified
from pock_tvm.compiler.targets import kernel_target, resolve_target
from schedules.kernels.matmul import matmul

AARCH64, ARM, RISCV = "ELF of machine 183", "ELF of machine 40", "ELF of machine 243"
FORMATS = {
    "linux-x64": "ELF of machine 62",
    "win-x64": "COFF of machine 0x8664",
    "m1": "Mach-O of CPU 0x100000c",
    "pi5": AARCH64,
    "pi4": AARCH64,
    "pi-zero2": AARCH64,
    "pi3-32": ARM,
    "android-arm64": AARCH64,
    "ios": "Mach-O of CPU 0x100000c",
    "riscv64": RISCV,
    "riscv64-v": RISCV,
    "cortex-m7": ARM,
    "cortex-m33": ARM,
}


def format_of(code: bytes) -> str:
    """The format of an object file, from its first bytes."""
    if code[:4] == b"\x7fELF":
        return f"ELF of machine {struct.unpack_from('<H', code, 18)[0]}"
    if code[:4] == b"\xcf\xfa\xed\xfe":
        return f"Mach-O of CPU {struct.unpack_from('<I', code, 4)[0]:#x}"
    return f"COFF of machine {struct.unpack_from('<H', code)[0]:#x}"


@pytest.mark.parametrize("name", MACHINES)
def test_a_kernel_of_each_machine_is_an_object_in_its_format(name: str, tmp_path, capfd) -> None:
    target, path = resolve_target(name), tmp_path / "product.o"
    a, b = (te.placeholder(shape, "float32", name) for name, shape in (("a", (12, 24)), ("b", (24, 16))))
    func = te.create_prim_func([a, b, matmul(a, b, transpose_a=False, transpose_b=False)])
    machine = kernel_target(target)
    mod = machine.lower(machine.schedule(func).with_attr("global_symbol", "product"))
    tvm.get_global_func("target.build.llvm")(mod, target).write_to_file(str(path), "o")
    assert format_of(path.read_bytes()) == FORMATS[name]
    assert capfd.readouterr().err == "", "LLVM knows the processor and its features"


@pytest.mark.parametrize(
    ("name", "cores", "lanes", "ports"), [("pi4", 4, 4, 1), ("pi5", 4, 4, 2), ("m1", 4, 4, 4), ("cortex-m7", 1, 1, 1)]
)
def test_a_short_name_has_the_traits_of_its_core(name: str, cores: int, lanes: int, ports: int) -> None:
    traits = kernel_target(resolve_target(name)).traits
    assert (traits.cores, traits.lanes, traits.fma_ports) == (cores, lanes, ports)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("pi-4", "did you mean pi4"),
        ("Cortex-M7", "did you mean cortex-m7"),
        ("raspbery-pi/4b-aarch64", "did you mean raspberry-pi/4b-aarch64"),
        ("abacus", "give host, linux-x64, .*JSON"),
    ],
)
def test_an_unknown_target_is_refused_with_those_that_are_near(name: str, near: str) -> None:
    with pytest.raises(pock.PockError, match=f"'{name}' is no target: {near}"):
        resolve_target(name)


def test_the_table_has_every_machine_and_how_far_it_was_tried() -> None:
    """In 80 columns, in two tables: what each is, and its traits."""
    lines = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["targets"]).output.splitlines()
    found = {name: [line for line in lines if line.split()[:1] == [name]] for name in ("host", *MACHINES)}
    assert all(len(rows) == 2 for rows in found.values())
    tried = {name: re.split(" {2,}", rows[0].strip())[-1] for name, rows in found.items()}
    for name, machine in MACHINES.items():  # a cell may go on in the next line
        assert machine.verified.startswith(tried[name]) and len(tried[name]) > 10
    assert "320 KiB" in found["cortex-m7"][1] and "ran on hardware" in found["host"][0]


def test_the_readme_says_how_far_each_was_tried() -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    rows = {level: row for level in Verified for row in readme.splitlines() if row.startswith(f"| **{level}**")}
    assert all(f"`{name}`" in rows[machine.verified] for name, machine in MACHINES.items())
