"""Live-range analysis of the buffers of a function."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tvm import relax

from ..ir import CALLS, bindings_of, op_name, type_bytes, used_vars
from .aliasing import Aliasing, Buffer, output_type
from .batch_axis import WHOLE

ALIGNMENT = 64
"""Alignment of offsets in the arena where a target asks for no more, in bytes: one cache line, and one AVX-512 vector.
Whatever runs a program aligns the start of the arena as well."""
SCRATCH = "scratch"
"""Attribute of a function with the bytes of scratch by kernel (:class:`relay_passes.ReserveScratch`), and the name of
its live ranges."""
ALIGNED = "alignment"
"""Attribute of a function with the alignment that a target asks for, in bytes (:class:`relay_passes.ReserveScratch`).
"""
HELD = "held_inputs"
"""Attribute of a function with the inputs that the arena holds (:class:`relay_passes.HoldInputs`): name, bytes, and
whether it is in use to the end."""
INPUT = "input."
"""Prefix of the names of their live ranges."""


@dataclass(frozen=True)
class LiveRange:
    """Live range of a temporary: its size in bytes, first step and last step."""

    name: str
    size: int
    first: int
    last: int
    offset: int | None = None
    """Place in the arena; None where a plan chooses it."""


class Liveness:
    """Live ranges of all buffers of a function, in steps that count its bindings."""

    def __init__(self, func: relax.Function) -> None:
        self.aliasing = aliasing = Aliasing(func)
        self.span: dict[Buffer, tuple[int, int]] = {}
        """First and last binding that use each buffer, from first write to last read."""
        for step, binding in enumerate(aliasing.bindings):
            for output in aliasing.outputs(binding):
                self._use(aliasing.buffer_of(output)[0], step)
            if op_name(binding.value) in CALLS:
                for var in used_vars(binding.value):
                    for buffer in aliasing.buffers(var):
                        self._use(buffer, step)
        kept = {buffer for result in aliasing.results for buffer in aliasing.buffers(result)}
        self.temporaries = [buffer for buffer in self.span if buffer not in kept]
        """Buffers that no result aliases. The caller keeps the results."""
        self.scratch = scratch_of(func)
        """Bytes of scratch by binding, for the calls that need any."""
        self._held = func.attrs.get(HELD, ()) if func.attrs else ()
        self._params = {param: param.name.removesuffix(WHOLE) for param in func.params}
        self._alignment = int(func.attrs.get(ALIGNED, ALIGNMENT)) if func.attrs else ALIGNMENT

    def _use(self, buffer: Buffer, step: int) -> None:
        self.span[buffer] = (self.span.get(buffer, (step, step))[0], step)

    def ranges(self) -> tuple[LiveRange, ...]:
        """Return the live ranges of ``temporaries``, then of ``scratch``, then of inputs that the arena holds, with
        sizes rounded up to the alignment."""
        aligned = self._aligned
        temporaries = (
            LiveRange(var.name, aligned(type_bytes(output_type(var, index))), *self.span[var, index])
            for var, index in self.temporaries
        )
        scratch = (LiveRange(SCRATCH, aligned(size), step, step) for step, size in self.scratch.items())
        return (*temporaries, *scratch, *self._inputs())

    def _inputs(self) -> Iterator[LiveRange]:
        offset = 0
        for name, size, is_followed in self._held:
            if name in self._params.values():
                last = len(self.aliasing.bindings) - 1 if is_followed else self._last_use(name)
                yield LiveRange(f"{INPUT}{name}", self._aligned(int(size)), 0, last, offset)
            offset += self._aligned(int(size))

    def _last_use(self, name: str) -> int:
        """Return the last step that reads an input; 0 if none does."""
        aliasing = self.aliasing
        return max(
            (
                step
                for step, binding in enumerate(aliasing.bindings)
                if op_name(binding.value) in CALLS
                for var in used_vars(binding.value)
                if not aliasing.buffers(var) and self._params.get(aliasing.origin(var)) == name
            ),
            default=0,
        )

    def _aligned(self, size: int) -> int:
        return -(-size // self._alignment) * self._alignment


def live_ranges(func: relax.Function) -> tuple[LiveRange, ...]:
    """Return the live ranges of a function's temporaries."""
    return Liveness(func).ranges()


def scratch_of(func: relax.Function) -> dict[int, int]:
    """Return the bytes of scratch by binding, for the calls that need any."""
    sizes = func.attrs.get(SCRATCH, {}) if func.attrs else {}
    kernels = {
        step: binding.value.args[0].name_hint
        for step, binding in enumerate(bindings_of(func))
        if op_name(binding.value) in CALLS
    }
    return {step: int(sizes[kernel]) for step, kernel in kernels.items() if kernel in sizes}
