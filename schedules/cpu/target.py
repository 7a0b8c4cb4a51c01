"""Target of the compiler for CPUs that LLVM generates code for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import tvm
from tvm import IRModule, tirx

from ..decisions import DEFAULTS, Choice, Decide, Decisions
from ..kernels import SMALL
from .lower import loops, lower, object_of, scratch_of
from .schedule import schedule, walk
from .scratch import needs_scratch
from .tile_cost import rounded_columns, rounded_rows, tiles, vector_lanes
from .traits import CpuTraits, traits_of
from .transpose import square_lanes

FEW_ROWS = 16
"""Most rows for which copying a matrix, to add columns to it, takes longer than computing with parts of vectors. From
measurements on Zen 5: with halves of vectors, 1280 x 1000 by 1 to 4 rows is 2.3 to 1.5 times as fast, by 16 1.1 times,
by 32 0.7 times; with quarters, 768 x 100 by 1 and 8 rows 1.8 and 1.2 times, by 32 0.6 times."""
MANY_ROWS = 240
"""Rows that tiles of most heights divide."""
MOST_PARTS = 4
"""Most parts of a vector."""


@dataclass(frozen=True)
class CpuLayouts:
    """Operand sizes that suit register tiles (:class:`schedules.target.Layouts`)."""

    traits: CpuTraits
    arguments: int = 4096
    """A function takes any number: more than any operator has."""
    reads_across: bool = False
    masks_edges: bool = False
    joins_attention: bool = True
    fuses_updates: bool = True

    @property
    def word_planes(self) -> bool:
        """Whether the processor multiplies vectors by numbers."""
        return self.traits.multiplies_by_numbers

    def padded_columns(self, columns: int) -> int:
        """Return the columns to compute of a product: whole vectors, where those of ``columns`` would be short, and
        slightly more for a much better tile."""
        lanes = self.traits.lanes
        is_padded = columns >= lanes and 2 * vector_lanes(columns, lanes) <= lanes
        return self._rounded(MANY_ROWS, math.ceil(columns / lanes) * lanes if is_padded else columns)

    def _rounded(self, rows: int, columns: int) -> int:
        return columns if columns % self.traits.lanes else rounded_columns(rows, columns, self.traits)

    def computed_columns(self, rows: int, columns: int) -> int:
        """Return :meth:`padded_columns`, unless there are few rows, and parts of vectors to compute them by; slightly
        more for a much better tile of so many rows."""
        has_parts = MOST_PARTS * vector_lanes(columns, self.traits.lanes) >= self.traits.lanes
        return columns if rows <= FEW_ROWS and has_parts else self._rounded(rows, self.padded_columns(columns))

    def rounded_rows(self, rows: int, columns: int) -> int:
        """Return the rows to compute of a ``rows`` x ``columns`` product."""
        return rounded_rows(rows, columns, self.traits)

    def strip_width(self, rows: int, columns: int) -> int:
        """Return the columns per strip of a packed second operand: 0, not to pack it, unless vectors are whole."""
        if columns % self.traits.lanes:
            return 0
        return tiles([self.rounded_rows(rows, columns)], columns, self.traits)[0].width

    def transposes_alone(self, shape: Sequence[int], axes: Sequence[int], dtype: str) -> bool:
        """Return whether a transpose is done in vector registers, by shuffles."""
        return dtype == "float32" and math.prod(shape) > SMALL and bool(square_lanes(shape, axes, self.traits))

    def fuses_attention(self, width: int, dtype: str, masks: int) -> bool:
        """Return whether the operands are floats: scores of a few queries stay in the cache."""
        return dtype in ("float32", "float64")


@dataclass(frozen=True)
class CpuTarget:
    """A CPU (:class:`schedules.target.Target`)."""

    traits: CpuTraits
    llvm: tvm.target.Target

    is_gpu = False

    @property
    def layouts(self) -> CpuLayouts:
        """Operand layouts that suit register tiles."""
        return CpuLayouts(self.traits)

    def schedule(self, func: tirx.PrimFunc, decisions: Decisions = DEFAULTS) -> tirx.PrimFunc:
        """Schedule one kernel. One that comes scheduled, or that no rule suits, is returned unchanged."""
        return schedule(func, self.traits, decisions)

    def options(
        self, func: tirx.PrimFunc, decisions: Decisions | Decide = DEFAULTS, space: str | None = None
    ) -> dict[str, Choice]:
        """Return the choices that a kernel's schedule offers under ``decisions``, by name."""
        return self.walk(func, decisions, space)[1]

    def walk(
        self, func: tirx.PrimFunc, decisions: Decisions | Decide, space: str | None = None
    ) -> tuple[tirx.PrimFunc, dict[str, Choice]]:
        """Schedule one kernel; return it, and the choices that its schedule offers under ``decisions``."""
        return walk(func, self.traits, decisions, space)

    def lower(self, func: tirx.PrimFunc) -> IRModule:
        """Lower a scheduled kernel to a C function of pointers, under its ``global_symbol``."""
        return lower(func, self.llvm, self.traits.cores)

    def loops(self, func: tirx.PrimFunc) -> IRModule:
        """Lower a scheduled kernel to flat loops: what TVM's ``MakePackedAPI`` takes."""
        return loops(func, self.llvm)

    def code(self, func: tirx.PrimFunc) -> bytes:
        """Return the object file of a scheduled kernel."""
        return object_of(self.lower(func), self.llvm)

    def scratch_bytes(self, func: tirx.PrimFunc) -> int:
        """Return the bytes of memory that a scheduled kernel needs besides its operands, for all its workers."""
        if not needs_scratch(func.body):
            return 0  # as most do not: lowering takes longer than scheduling
        return scratch_of(self.lower(func))


def cpu_target(llvm: tvm.target.Target) -> CpuTarget:
    """Make the target of the CPU that TVM's LLVM target describes."""
    return CpuTarget(traits_of(llvm), llvm)
