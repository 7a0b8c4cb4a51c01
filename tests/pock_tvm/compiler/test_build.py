"""Kernels and executors become a shared library, or objects where no C compiler links them."""

from __future__ import annotations

import io
import os
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

import pock_tvm as pock
from pock_tvm.compiler.targets import linker_for, resolve_target
from pock_tvm.device.machine import machine_triple
from pock_tvm.device.profile import example, profile
from pock_tvm.device.program import kernel_calls
from tests.pock_tvm.networks import small
from tests.schedules.kernels import built

LINKER = linker_for(resolve_target("host"))
ELF = b"\x7fELF"


def compiled(path: str) -> pock.Program:
    """A program that is compiled with another PATH."""
    with pytest.MonkeyPatch.context() as context:
        context.setenv("PATH", path)
        return pock.compile(small(4), optimizer=pock.Adam())


@pytest.fixture(scope="module")
def objects() -> pock.Program:
    return compiled(os.devnull)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A compiler that does nothing but fail."""
    compiler = tmp_path / "bin" / "cc"
    compiler.parent.mkdir()
    compiler.write_text("#!/bin/sh\necho 'no developer tools were found' >&2\nexit 1\n")
    compiler.chmod(0o755)
    return compiler


def test_a_program_needs_no_compiler(objects, tmp_path) -> None:
    objects.save(tmp_path / "net.pock")
    program = pock.Program.load(tmp_path / "net.pock")
    assert program.library == objects.library and not program.library.startswith(ELF)
    trainer = pock.Trainer(program)
    x, y = example(program)
    losses = [trainer.step(x, y, lr=0.01) for _ in range(5)]
    assert losses == sorted(losses, reverse=True)
    assert len(profile(trainer, x, y, repeat=1)) == len(kernel_calls(program.manifest["entries"]["train_step"]))


def test_a_step_allocates_nothing(objects) -> None:
    memory = objects.memory()
    assert 0 < memory["scratch"] < memory["arena"]  # its convolutions pad
    assert b"AllocWorkspace" not in objects.library


def test_a_compiler_that_does_not_link_is_as_good_as_none(objects, broken) -> None:
    assert compiled(str(broken.parent)).library == objects.library


@pytest.mark.skipif(LINKER is None, reason="needs a C compiler")
def test_linked_or_not_a_program_is_the_same(objects, tmp_path) -> None:
    linked = compiled(os.environ["PATH"])
    assert linked.library.startswith(ELF)
    here, there = pock.Trainer(linked), pock.Trainer(objects)
    x, y = example(linked)
    for trainer, other in ((here, there), (there, here)):
        trainer.step(x, y, lr=0.01)
        trainer.save(tmp_path / "net.ckpt")
        other.restore(tmp_path / "net.ckpt")
        assert other.step(x, y, lr=0.01) == trainer.step(x, y, lr=0.01)
    for name, array in here.weights().items():
        np.testing.assert_array_equal(array, there.weights()[name], name)


def test_objects_that_nothing_loads_are_refused_with_what_to_install(objects, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tvm_ffi_orcjit", None)
    with pytest.raises(pock.PockError, match="apache-tvm-ffi-orcjit.*install"):
        pock.Trainer(objects)


CROSS = {
    "pi4": "aarch64-linux-gnu-gcc",
    "raspberry-pi/4b-aarch64": "aarch64-linux-gnu-gcc",
    "arm/rasp3b": "arm-linux-gnueabihf-gcc",
    "riscv/sifive-u74": "riscv64-linux-gnu-gcc",
    '{"kind": "llvm", "mtriple": "x86_64-pc-linux-gnu"}': "x86_64-linux-gnu-gcc",
    '{"kind": "llvm", "mtriple": "x86_64-w64-windows-gnu"}': "x86_64-w64-windows-gnu-gcc",
}


@pytest.mark.parametrize("target", CROSS)
def test_another_machine_is_linked_by_its_compiler_where_there_is_one(target, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    machine = "aarch64-linux" if "x86_64" in target else "x86_64-linux"
    monkeypatch.setattr(
        "pock_tvm.compiler.targets.machine_triple",
        lambda triple=None: machine if triple is None else machine_triple(triple),
    )
    assert linker_for(resolve_target(target)) is None
    (tmp_path / CROSS[target]).write_text("")
    (tmp_path / CROSS[target]).chmod(0o755)
    assert linker_for(resolve_target(target)) == CROSS[target]


def machines(program: pock.Program) -> set[int]:
    """ELF's numbers of the machines that a program's objects are for."""
    with zipfile.ZipFile(io.BytesIO(program.library)) as archive:
        return {struct.unpack_from("<H", archive.read(name), 18)[0] for name in archive.namelist()}


RISC_V = 243


def test_without_its_compiler_a_program_for_another_machine_holds_objects(monkeypatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    program = pock.compile(small(4), target="riscv64", scheme=pock.Scheme({"head.*": "full"}), check=False)
    assert machines(program) == {RISC_V}


def test_a_compiler_of_another_machine_that_fails_is_told(broken, monkeypatch) -> None:
    name = "riscv64-linux-gnu-gcc"
    broken.rename(broken.parent / name)
    monkeypatch.setenv("PATH", str(broken.parent))
    with pytest.warns(pock.PockWarning, match=f"'{name}' fails to link.*riscv64.*: no developer tools were found$"):
        program = pock.compile(small(4), target="riscv64", scheme=pock.Scheme({"head.*": "full"}), check=False)
    assert machines(program) == {RISC_V}


def test_a_kernel_that_fails_ends_the_run() -> None:
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("kernel")
        x = T.arg("x", T.Buffer((1,), "float32"))
        with T.Assert(x[0] > 0, "what the kernel says"):
            pass
    kernel = built(builder.get())
    kernel(np.ones(1, "float32"))
    with pytest.raises(pock.PockError, match="'call_kernel' stopped: a kernel got no threads"):
        kernel(np.zeros(1, "float32"))
