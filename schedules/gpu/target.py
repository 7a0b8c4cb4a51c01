"""Target of the compiler for GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tvm
from tvm import IRModule, tirx

from ..decisions import DEFAULTS, Choice, Decide, Decisions
from .lower import lower, scratch_of
from .products.attention import GRADIENT_OPERANDS, WIDEST
from .schedule import FALLBACK, schedule, walk
from .text.code import code_of, described
from .text.limits import OverLimit
from .traits import GpuTraits, traits_of


@dataclass(frozen=True)
class GpuLayouts:
    """Operands of products as they are: a thread block brings its tiles into shared memory, in any order
    (:class:`schedules.target.Layouts`)."""

    arguments: int
    """Most buffers that a kernel binds."""
    reads_across: bool = True
    masks_edges: bool = True
    word_planes: bool = False
    joins_attention: bool = False
    fuses_updates: bool = False

    def padded_columns(self, columns: int) -> int:
        """Return ``columns``: a block masks the end of its tile."""
        return columns

    def computed_columns(self, rows: int, columns: int) -> int:
        """Return ``columns``: a block masks the end of its tile."""
        return columns

    def rounded_rows(self, rows: int, columns: int) -> int:
        """Return ``rows``: a block masks the end of its tile."""
        return rows

    def strip_width(self, rows: int, columns: int) -> int:
        """Return 0: nothing is packed."""
        return 0

    def transposes_alone(self, shape: Sequence[int], axes: Sequence[int], dtype: str) -> bool:
        """Return False: a transpose is fused with its neighbours."""
        return False

    def fuses_attention(self, width: int, dtype: str, masks: int) -> bool:
        """Return whether the sums of a head fit into the registers of a block, and a kernel can bind its operands."""
        return width <= WIDEST and dtype != "float64" and GRADIENT_OPERANDS + masks <= self.arguments


@dataclass(frozen=True)
class GpuTarget:
    """A GPU (:class:`schedules.target.Target`)."""

    traits: GpuTraits
    target: tvm.target.Target

    is_gpu = True

    @property
    def layouts(self) -> GpuLayouts:
        """Operand layouts: as they are."""
        return GpuLayouts(self.traits.arguments)

    def schedule(self, func: tirx.PrimFunc, decisions: Decisions = DEFAULTS) -> tirx.PrimFunc:
        """Schedule one kernel. Every loop nest of it is bound to blocks and threads."""
        return schedule(func, self.traits, self._check, decisions)

    def options(
        self, func: tirx.PrimFunc, decisions: Decisions | Decide = DEFAULTS, space: str | None = None
    ) -> dict[str, Choice]:
        """Return the choices that a kernel's schedule offers under ``decisions``, by name."""
        return self.walk(func, decisions, space)[1]

    def walk(
        self, func: tirx.PrimFunc, decisions: Decisions | Decide, space: str | None = None
    ) -> tuple[tirx.PrimFunc, dict[str, Choice]]:
        """Schedule one kernel; return it, and the choices that its schedule offers under ``decisions``."""
        return walk(func, self.traits, self._check, decisions, space)

    def lower(self, func: tirx.PrimFunc) -> IRModule:
        """Lower a scheduled kernel to its device functions, and the host function that launches them."""
        return lower(func, self.target)

    def loops(self, func: tirx.PrimFunc) -> IRModule:
        """Lower a scheduled kernel, as :meth:`lower` does: what TVM's ``MakePackedAPI`` takes."""
        return self.lower(func)

    def scratch_bytes(self, func: tirx.PrimFunc) -> int:
        """Return the bytes of memory for what the launches of a scheduled kernel hand on to each other."""
        return scratch_of(self.lower(func))

    def code(self, func: tirx.PrimFunc) -> bytes:
        """Return the text of a scheduled kernel and its launches, as JSON (:mod:`schedules.gpu.text.code`)."""
        return code_of(self.lower(func), self.traits, str(func.attrs.get(FALLBACK, "")))

    def _check(self, func: tirx.PrimFunc) -> None:
        """Raise ``OverLimit`` (:mod:`schedules.gpu.text.limits`) for a scheduled kernel that a device may refuse, or
        that TVM cannot lower or write: WGSL lacks some operations on vectors."""
        named = func if "global_symbol" in func.attrs else func.with_attr("global_symbol", "kernel")
        try:
            described(self.lower(named), self.traits)
        except tvm.error.InternalError as error:
            raise OverLimit(f"TVM cannot write it ({error})") from error


def gpu_target(target: tvm.target.Target) -> GpuTarget:
    """Make the target of the GPU that TVM's target describes."""
    return GpuTarget(traits_of(target), target)
