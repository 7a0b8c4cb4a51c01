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
from ..errors import PockError
from .plan import Plan, plan_of
from .state_form import StateForm, state_form

STACK_BYTES = 8 * 1024
"""Stack of a microcontroller. Kernels keep register tiles there, and buffers of less than 1 KB."""
CODE_BYTES = 24 * 1024
"""Code beside the kernels: entry points, runtime, start-up, functions of the C library."""


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
    """Estimate: the kernels' own, and :data:`CODE_BYTES`."""
    memory: int
    """``POCK_MEMORY_BYTES``: what training changes, and the arena."""
    state: int
    """Buffer that a state is written to."""
    budget: int
    """What ``memory_budget`` limits: arena, optimizer state and gradient sums."""

    @property
    def flash(self) -> int:
        """All that lies in flash."""
        return self.weights + self.code

    @property
    def ram(self) -> int:
        """All that lies in RAM."""
        return self.memory + self.state + STACK_BYTES

    def parts(self) -> dict[str, int]:
        """Sizes by the names that the bundle's README has for them."""
        return {
            "weights": self.weights, "code": self.code, "memory": self.memory, "state": self.state,
            "stack": STACK_BYTES, "flash": self.flash, "ram": self.ram,
        }  # fmt: skip

    def __str__(self) -> str:
        return (
            f"flash {_kb(self.flash)} (weights {_kb(self.weights)}, code about {_kb(self.code)}); RAM {_kb(self.ram)} "
            f"(network {_kb(self.memory)}, state {_kb(self.state)}, stack {_kb(STACK_BYTES)})"
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


def needs_of_plan(program: Program, plan: Plan, form: StateForm) -> Needs:
    """Return what a program with this plan needs."""
    with zipfile.ZipFile(io.BytesIO(program.kernels)) as archive:
        objects = [archive.read(name) for name in archive.namelist() if name.endswith(".o")]
    memory = program.memory()
    budget = memory["arena"] + memory["optimizer_state"] + memory["gradient_sums"]
    code = CODE_BYTES + sum(map(loaded_bytes, objects))
    return Needs(len(plan.weights), code, plan.memory_bytes, form.nbytes, budget)


def limits_of(program: Program, flash: int | None = None, ram: int | None = None) -> Limits | None:
    """Return the flash and RAM of a program's device; None for one with a system. Given numbers come first.

    Raises
    ------
    PockError
        Nobody knows the device, and a number is missing.
    """
    target = program.manifest["target"]
    if "-none-" not in target["triple"]:
        return None
    cpu = json.loads(target["description"]).get("mcpu")
    machine = next(
        (
            name
            for name, each in MACHINES.items()
            if each.flash_bytes and (each.triple, each.cpu) == (target["triple"], cpu)
        ),
        None,
    )
    if machine is not None:
        flash, ram = flash or MACHINES[machine].flash_bytes, ram or MACHINES[machine].ram_bytes
    if not flash or not ram:
        raise PockError(
            f"how much memory the device with a {cpu} core has is not known: say so (--flash 512KB --ram 256KB)"
        )
    return Limits(machine or str(cpu), flash, ram)


ELF32 = b"\x7fELF\x01\x01"
ALLOCATED, NO_BITS = 2, 8


def loaded_bytes(code: bytes) -> int:
    """Return the bytes of an object file (ELF, 32 bits) that are loaded: code and constants."""
    if not code.startswith(ELF32):
        raise PockError("a kernel is in no ELF file of 32 bits: compile the program again for a microcontroller")
    (start,) = struct.unpack_from("<I", code, 32)
    size, count = struct.unpack_from("<HH", code, 46)
    sections = (struct.unpack_from("<IIIIII", code, start + number * size) for number in range(count))
    return sum(length for _, kind, flags, _, _, length in sections if flags & ALLOCATED and kind != NO_BITS)


def _kb(size: int) -> str:
    return f"{size / 1000:,.1f} KB"
