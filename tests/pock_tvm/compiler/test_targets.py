"""Targets by short name: what they resolve to, and what a name that nobody knows gets."""

from __future__ import annotations

import base64
import json
import re
import struct
from pathlib import Path

import pytest
import tvm
from tvm import te
from typer.testing import CliRunner

import pock_tvm as pock
from pock_tvm.cli import app
from pock_tvm.compiler import targets
from pock_tvm.compiler.machines import CPUS, GPUS, MACHINES, Verified
from pock_tvm.compiler.targets import instructions_of, kernel_target, resolve_target
from schedules.gpu.text.cubin import NoCudaCompilerError
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
    **{name: "ELF of machine 164" for name in CPUS if name.startswith("hexagon-")},
}


def format_of(code: bytes) -> str:
    """The format of an object file, from its first bytes."""
    if code[:4] == b"\x7fELF":
        return f"ELF of machine {struct.unpack_from('<H', code, 18)[0]}"
    if code[:4] == b"\xcf\xfa\xed\xfe":
        return f"Mach-O of CPU {struct.unpack_from('<I', code, 4)[0]:#x}"
    return f"COFF of machine {struct.unpack_from('<H', code)[0]:#x}"


@pytest.mark.parametrize("name", CPUS)
def test_a_kernel_of_each_machine_is_an_object_in_its_format(name: str, tmp_path, capfd) -> None:
    target, path = resolve_target(name), tmp_path / "product.o"
    a, b = (te.placeholder(shape, "float32", name) for name, shape in (("a", (12, 24)), ("b", (24, 16))))
    func = te.create_prim_func([a, b, matmul(a, b, transpose_a=False, transpose_b=False)])
    machine = kernel_target(target)
    mod = machine.lower(machine.schedule(func).with_attr("global_symbol", "product"))
    tvm.get_global_func("target.build.llvm")(mod, target).write_to_file(str(path), "o")
    assert format_of(path.read_bytes()) == FORMATS[name]
    assert capfd.readouterr().err == "", "LLVM knows the processor and its features"


TEXTS = {"m1-gpu": "kernel void", "webgpu": "@compute", "opencl": "__kernel void", "cuda": ".target sm_75"}
CUBINS = {"jetson-orin": 87, "jetson-nano": 53, "h200": 90}


@pytest.mark.parametrize("name", GPUS)
def test_a_kernel_of_each_gpu_is_in_its_language(name: str) -> None:
    machine = kernel_target(resolve_target(name))
    a = te.placeholder((300,), "float32", "0.weight")
    func = te.create_prim_func([a, te.compute((300,), lambda at: a[at] + 1)]).with_attr("global_symbol", "added")
    try:
        record = json.loads(machine.code(machine.schedule(func)))
    except NoCudaCompilerError as error:
        pytest.skip(str(error))
    code = base64.b64decode(record["binary"]) if "binary" in record else record["text"].encode()
    if name in CUBINS:
        assert format_of(code) == "ELF of machine 190", "NVIDIA's"
        assert struct.unpack_from("<I", code, 48)[0] & 0xFF == CUBINS[name], "the architecture in ELF's flags"
    else:
        assert TEXTS[name] in code.decode()


@pytest.mark.parametrize(("name", "cores"), [("jetson-orin", 8), ("jetson-nano", 1), ("h200", 132), ("m1-gpu", 8)])
def test_a_gpus_short_name_has_its_traits(name: str, cores: int) -> None:
    traits = kernel_target(resolve_target(name)).traits
    assert (traits.cores, traits.warp, traits.dialect) == (cores, 32, GPUS[name].dialect)


def test_a_program_names_the_gpus_that_its_kernels_run_on() -> None:
    assert instructions_of(resolve_target("jetson-orin")) == ["sm_87"]
    assert instructions_of(resolve_target("cuda")) == ["compute_75"], "and later"
    assert instructions_of(resolve_target("opencl")) == []


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
        ("jetson-orn", "did you mean jetson-orin"),
        ("abacus", "give host, calibrated, linux-x64, .*JSON"),
    ],
)
def test_an_unknown_target_is_refused_with_those_that_are_near(name: str, near: str) -> None:
    with pytest.raises(pock.PockError, match=f"'{name}' is no target: {near}"):
        resolve_target(name)


def test_the_table_has_every_machine_and_how_far_it_was_tried() -> None:
    """In 80 columns, twice: what each is, and its traits."""
    lines = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["targets"]).output.splitlines()
    found = {name: [line for line in lines if line.split()[:1] == [name]] for name in ("host", *MACHINES)}
    assert all(len(rows) == 2 for rows in found.values())
    tried = {name: re.split(" {2,}", rows[0].strip())[-1] for name, rows in found.items()}
    for name, machine in MACHINES.items():  # a cell may go on in the next line
        assert machine.verified.startswith(tried[name]) and len(tried[name]) > 10
    assert (
        "cubin sm_87" in found["jetson-orin"][1]
        and "320 KiB" in found["cortex-m7"][1]
        and "ran on hardware" in found["host"][0]
    )


def test_the_readme_says_how_far_each_was_tried() -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    rows = {level: row for level in Verified for row in readme.splitlines() if row.startswith(f"| **{level}**")}
    assert all(f"`{name}`" in rows[machine.verified] for name, machine in MACHINES.items())


def test_the_host_lacks_what_a_virtual_machine_hides_of_its_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """LLVM goes by the core's name: a program for it would be refused where it was compiled."""
    has = set(instructions_of(resolve_target("host")))
    hidden = {each for each in has if each.startswith(("avx512", "dotprod"))}
    monkeypatch.setattr(targets, "machine_sets", lambda: frozenset(has - hidden))
    found = resolve_target("host")
    assert not set(instructions_of(found)) & hidden
    if "avx512f" in has:
        assert kernel_target(found).traits.lanes == 8
