"""Flash and RAM that a program needs on a microcontroller, known before its bundle is built."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from dataclasses import dataclass

import numpy as np

from ..compiler.machines import MACHINES
from ..device.parameters import PREPARED
from ..device.program import Program
from ..device.reading import reading
from ..errors import PockError, ProgramError
from ..quantities import parse_bytes
from .plan import STEPS, Plan, plan_of
from .state_form import StateForm, state_form
from .symbols import is_freestanding

STACK_BYTES = 8 * 1024
"""Stack of a microcontroller. Kernels keep register tiles there, and buffers of less than 1 KB."""
OTHER_BYTES = 2 * 1024
"""RAM that the C library takes: newlib keeps its error number in 1 KB of data."""
CODE_BYTES = 20 * 1024
"""Code that every bundle has: runtime, start-up, mathematical functions. GCC's is half as large, zig's not."""
CALL_BYTES = 40
"""Code of a call in an entry point."""
UNUSED = b"tvm.fp16"
"""Part of the names of sections that every object has, and that no kernel here calls: a linker drops them."""


@dataclass(frozen=True)
class Limits:
    """Flash and RAM that there are, in bytes."""

    machine: str
    """The device, for messages."""
    flash: int
    ram: int


@dataclass(frozen=True)
class Needs:
    """Flash and RAM that a program takes, in bytes."""

    weights: int
    code: int
    """Estimate: the kernels' own, entry points, runtime, form of states."""
    memory: int
    """``POCK_MEMORY_BYTES``: what training changes, and the arena."""
    state: int
    """Buffer that a state is written to."""
    budget: int
    """Memory that ``memory_budget`` limits: arena, optimizer state and gradient sums."""

    @property
    def flash(self) -> int:
        """All that lies in flash."""
        return self.weights + self.code

    @property
    def ram(self) -> int:
        """All that lies in RAM."""
        return self.memory + self.state + STACK_BYTES + OTHER_BYTES

    def parts(self) -> dict[str, int]:
        """Sizes by the names that the bundle's README has for them."""
        return {
            "weights": self.weights, "code": self.code, "memory": self.memory, "state": self.state,
            "stack": STACK_BYTES + OTHER_BYTES, "flash": self.flash, "ram": self.ram,
        }  # fmt: skip

    def __str__(self) -> str:
        return (
            f"flash {_kb(self.flash)} (weights {_kb(self.weights)}, code about {_kb(self.code)}); RAM {_kb(self.ram)} "
            f"(network {_kb(self.memory)}, state {_kb(self.state)}, stack {_kb(STACK_BYTES + OTHER_BYTES)})"
        )

    def check(self, limits: Limits) -> None:
        """Check that it fits.

        Raises
        ------
        PockError
            It does not. Says by how much, and what to change.
        """
        over = self.flash - limits.flash
        if over > 0:
            raise PockError(
                f"{limits.machine} has {_kb(limits.flash)} of flash, and this program needs {_kb(over)} more: {self}. "
                "Take a smaller network, or a device with more flash (--flash says how much there is)"
            )
        over = self.ram - limits.ram
        if over > 0:
            smaller = self.budget - over
            budget = f"compile it with --memory-budget {smaller}, " if smaller > 0 else ""
            raise PockError(
                f"{limits.machine} has {_kb(limits.ram)} of RAM, and this program needs {_kb(over)} more: {self}. "
                f"To make it fit, {budget}train less (--scheme), or take a smaller batch; --ram says how much there is"
            )


def needs_of(program: Program) -> Needs:
    """Return what a program needs. Nothing is built."""
    parameters = program.parameters.items()
    prepared = {name: np.zeros(each.shape, each.dtype) for name, each in parameters if each.origin == PREPARED}
    plan = plan_of(program, prepared)
    return needs_of_plan(program, plan, state_form(program, plan))


def fitting_needs(program: Program, flash: str | int | None = None, ram: str | int | None = None) -> Needs | None:
    """Return what a program for a microcontroller needs, which is no more than that has; None for one with a system.

    Raises
    ------
    PockError
        It has less, or :func:`limits_of` fails.
    """
    limits = limits_of(program, flash, ram)
    if limits is None:
        return None
    needs = needs_of(program)
    needs.check(limits)
    return needs


def needs_of_plan(program: Program, plan: Plan, form: StateForm) -> Needs:
    """Return what a program with this plan needs."""
    fault = "the program's kernels are damaged or left out (slim): compile it again ({})"
    with reading(ProgramError, fault), zipfile.ZipFile(io.BytesIO(program.kernels)) as archive:
        kernels = sum(loaded_bytes(archive.read(name)) for name in archive.namelist() if name.endswith(".o"))
    memory, entries = program.memory(), program.manifest["entries"]
    budget = memory["arena"] + memory["optimizer_state"] + memory["gradient_sums"]
    calls = sum(len(entries[name]["calls"]) for name in STEPS if name in entries)
    code = CODE_BYTES + CALL_BYTES * calls + len(form.header) + kernels
    return Needs(len(plan.weights), code, plan.memory_bytes, form.nbytes, budget)


def core_of(program: Program) -> str | None:
    """Return the core that a program was compiled for, by LLVM's name; None where the target names none."""
    return json.loads(program.manifest["target"]["description"]).get("mcpu")


def limits_of(program: Program, flash: str | int | None = None, ram: str | int | None = None) -> Limits | None:
    """Return the flash and RAM of a program's device; None for one with a system. Amounts that are given come first.

    Raises
    ------
    PockError
        An amount is none; or is missing, where nobody knows the device; or is given where there is a system.
    """
    target = program.manifest["target"]
    if not is_freestanding(target["triple"]):
        if flash is not None or ram is not None:
            raise PockError(f"{target['triple']} is no microcontroller: leave flash and ram out")
        return None
    cpu = core_of(program)
    known: dict[tuple[str, str | None], str] = {
        (each.triple, each.cpu): name for name, each in MACHINES.items() if each.flash_bytes
    }
    name = known.get((target["triple"], cpu))
    given = [None if each is None else parse_bytes(each) for each in (flash, ram)]
    if name is not None:
        given = [given[0] or MACHINES[name].flash_bytes, given[1] or MACHINES[name].ram_bytes]
    if given[0] is None or given[1] is None:
        raise PockError(f"how much memory the device with a {cpu} core has is not known: give it (--flash, --ram)")
    return Limits(name or str(cpu), given[0], given[1])


ELF32 = b"\x7fELF\x01\x01"
ALLOCATED, NO_BITS = 2, 8


def loaded_bytes(code: bytes) -> int:
    """Return the bytes of an object file (ELF, 32 bits, little-endian) that are loaded: code and constants.

    Raises
    ------
    PockError
        It is of another format.
    """
    if not code.startswith(ELF32):
        raise PockError("how much flash a program takes is known for microcontrollers with 32 bits: compile it for one")
    (start,) = struct.unpack_from("<I", code, 32)
    size, count, of_names = struct.unpack_from("<HHH", code, 46)
    sections = [struct.unpack_from("<IIIIII", code, start + number * size) for number in range(count)]
    names = sections[of_names][4]
    found = 0
    for name, kind, flags, _, _, length in sections:
        is_unused = UNUSED in code[names + name : code.index(b"\0", names + name)]
        found += length if flags & ALLOCATED and kind != NO_BITS and not is_unused else 0
    return found


def _kb(size: int) -> str:
    return f"{size / 1000:,.1f} KB"
