"""CPUs that LLVM generates code for, as a target of the compiler."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import IRModule, tirx

from ..decisions import DEFAULTS, Choice, Decisions
from ..target import Traits
from .lower import lower
from .schedule import options, schedule
from .tile import rounded_rows, tiles, vector_lanes
from .traits import traits_of


@dataclass(frozen=True)
class CpuLayouts:
    """Sizes that suit register tiles (:class:`schedules.target.Layouts`)."""

    traits: Traits

    def vector_lanes(self, columns: int) -> int:
        """Lanes of the vectors that divide ``columns`` contiguous results."""
        return vector_lanes(columns, self.traits.lanes)

    def rounded_rows(self, rows: int, columns: int) -> int:
        """Rows to compute of a product of ``rows`` x ``columns``."""
        return rounded_rows(rows, columns, self.traits)

    def strip_width(self, rows: int, columns: int) -> int:
        """Columns of one strip of a packed second operand."""
        return tiles([self.rounded_rows(rows, columns)], columns, self.traits)[0].width


@dataclass(frozen=True)
class CpuTarget:
    """A CPU (:class:`schedules.target.Target`)."""

    traits: Traits
    llvm: tvm.target.Target

    @property
    def layouts(self) -> CpuLayouts:
        """How operands are laid out for register tiles."""
        return CpuLayouts(self.traits)

    def schedule(self, func: tirx.PrimFunc, decisions: Decisions = DEFAULTS) -> tirx.PrimFunc:
        """Schedule one kernel; one that comes scheduled, or that nothing suits, stays as it is."""
        return schedule(func, self.traits, decisions)

    def options(self, func: tirx.PrimFunc, decisions: Decisions = DEFAULTS) -> dict[str, Choice]:
        """The choices of a kernel's schedule by name, behind some decisions."""
        return options(func, self.traits, decisions)

    def lower(self, func: tirx.PrimFunc) -> IRModule:
        """Lower a scheduled kernel to a C function of pointers, under its ``global_symbol``."""
        return lower(func, self.llvm)


def cpu_target(llvm: tvm.target.Target) -> CpuTarget:
    """The CPU that an LLVM target of TVM describes."""
    return CpuTarget(traits_of(llvm), llvm)
