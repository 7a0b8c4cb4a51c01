"""Flash and RAM that a program needs on a microcontroller, and those that there are."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...device.parameters import PREPARED
from ...device.program import Program
from ...device.reading import reading
from ...errors import PockError, ProgramError
from ...quantities import parse_bytes
from ..machines import CPUS
from .objects import loaded_bytes
from .plan import Plan, bundled, memory_of, plan_of
from .state_form import StateForm, state_form

STACK_BYTES = 8 * 1024
"""Stack of a microcontroller. Kernels keep register tiles there, and buffers of less than 1 KB."""
CODE_BYTES = 20 * 1024
"""Code that every bundle has: runtime, start-up, mathematical functions. GCC's is half as large, zig's not."""
CALL_BYTES = 40
"""Code of a call in an entry point."""


@dataclass(frozen=True)
class Limits:
    """Flash and RAM that there are, in bytes."""

    machine: str
    """The device, for messages."""
    flash: int
    ram: int

    @property
    def memory(self) -> int:
        """RAM beside the stack."""
        return self.ram - STACK_BYTES

    def too_small(self, smallest: int) -> str:
        """Word the refusal of a network whose smallest program takes ``smallest`` bytes of memory."""
        needed = smallest + STACK_BYTES
        return (
            f"{self.machine} has {_kb(self.ram)} of RAM, and the smallest program needs {_kb(needed - self.ram)} more "
            f"({_kb(needed)}, {_kb(STACK_BYTES)} of them stack): it splits the batch, and computes values again. "
            "Train less (scheme), or take a smaller batch; ram= says how much there is"
        )


@dataclass(frozen=True)
class Needs:
    """Flash and RAM that a program takes, in bytes."""

    weights: int
    code: int
    """Estimate: the kernels' own, entry points, runtime, form of states."""
    memory: int
    """``POCK_MEMORY_BYTES``: what training changes, and the arena."""
    unavoidable: int
    """Bytes of ``memory`` that every program of this scheme and batch needs: all but temporaries and the gradient sums
    of micro-batches."""

    @property
    def flash(self) -> int:
        """All that lies in flash."""
        return self.weights + self.code

    @property
    def ram(self) -> int:
        """All that lies in RAM."""
        return self.memory + STACK_BYTES

    def parts(self) -> dict[str, int]:
        """Sizes by the names that the bundle's README has for them."""
        return {
            "weights": self.weights, "code": self.code, "memory": self.memory,
            "stack": STACK_BYTES, "flash": self.flash, "ram": self.ram,
        }  # fmt: skip

    def __str__(self) -> str:
        return (
            f"flash {_kb(self.flash)} (weights {_kb(self.weights)}, code about {_kb(self.code)}); RAM {_kb(self.ram)} "
            f"(network {_kb(self.memory)}, stack {_kb(STACK_BYTES)})"
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
                "Take a smaller network, or a device with more flash (flash= says how much there is)"
            )
        over = self.ram - limits.ram
        if over > 0:
            unavoidable = self.unavoidable + STACK_BYTES
            advice = (
                f"Compile it with ram={limits.ram}: it then splits the batch, or computes values again. Or"
                if unavoidable <= limits.ram
                else f"{_kb(unavoidable)} are trained weights, states, inputs and stack, which no program avoids:"
            )
            raise PockError(
                f"{limits.machine} has {_kb(limits.ram)} of RAM, and this program needs {_kb(over)} more: {self}. "
                f"{advice} train less (scheme), or take a smaller batch; ram= says how much there is"
            )


def needs_of(program: Program) -> Needs:
    """Return what a program needs. Nothing is built."""
    parameters = program.parameters.items()
    prepared = {name: np.zeros(each.shape, each.dtype) for name, each in parameters if each.origin == PREPARED}
    plan = plan_of(program, prepared)
    return needs_of_plan(program, plan, state_form(program, plan))


def needs_of_plan(program: Program, plan: Plan, form: StateForm) -> Needs:
    """Return what a program with this plan needs."""
    fault = "the program's kernels are damaged or left out (slim): compile it again ({})"
    with reading(ProgramError, fault), zipfile.ZipFile(io.BytesIO(program.kernels)) as archive:
        kernels = sum(loaded_bytes(archive.read(name)) for name in archive.namelist() if name.endswith(".o"))
    calls = sum(len(entry["calls"]) for entry in bundled(program.manifest["entries"]).values())
    code = CODE_BYTES + CALL_BYTES * calls + len(form.header) + kernels
    memory = plan.memory
    avoidable = memory.sums[1] if program.manifest["options"]["accumulate"] == 1 else 0
    return Needs(len(plan.weights), code, memory.size, memory.arena - avoidable + memory.handed)


def limited_bytes(program: Program) -> tuple[int, int]:
    """Return what ``memory_budget`` limits of a program, and how much of that the parts of a batch do not divide."""
    manifest = program.manifest
    if is_freestanding(manifest["target"]["triple"]):
        inputs = [each["name"] for each in manifest["inputs"]]
        bundle = memory_of(bundled(manifest["entries"]), program.parameters, inputs)
        return bundle.size, bundle.arena + bundle.handed
    memory = program.memory()
    state = memory["optimizer_state"] + memory["gradient_sums"]
    return memory["arena"] + state, state


def is_freestanding(triple: str) -> bool:
    """Whether a target has no system, and so no C library to count on."""
    return "-none-" in triple


def core_of(target: Mapping[str, Any]) -> str | None:
    """The core of a target of a manifest, by LLVM's name; None where it names none."""
    return json.loads(target["description"]).get("mcpu")


def limits_of(target: Mapping[str, Any], flash: str | int | None = None, ram: str | int | None = None) -> Limits | None:
    """The flash and RAM of the device of a manifest's target. Amounts that are given come first.

    None for one with a system, and where neither is known nor given.

    Raises
    ------
    PockError
        An amount is none; or one alone is known; or there is a system, which shares out its memory.
    """
    given = [None if each is None else parse_bytes(each) for each in (flash, ram)]
    if not is_freestanding(target["triple"]):
        if given != [None, None]:
            raise PockError(f"{target['triple']} is no microcontroller: leave flash= and ram= out")
        return None
    cpu = core_of(target)
    place = target["triple"], cpu
    name = next((name for name, each in CPUS.items() if (each.triple, each.cpu) == place), None)
    if name is not None:
        given = [given[0] or CPUS[name].flash_bytes, given[1] or CPUS[name].ram_bytes]
    if given == [None, None]:
        return None
    if given[0] is None or given[1] is None:
        raise PockError(unknown_limits(target))
    return Limits(name or str(cpu), given[0], given[1])


def unknown_limits(target: Mapping[str, Any]) -> str:
    """What to do about a device whose memories nobody knows, in words."""
    return (
        f"how much memory the device with a {core_of(target) or 'generic'} core has is not known: give flash= and ram="
    )


def _kb(size: int) -> str:
    return f"{size / 1000:,.1f} KB"
