"""What the compiler knows of a machine: the interface between the passes and a back end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tvm import IRModule, tirx

from .decisions import DEFAULTS, Choice, Decisions


@dataclass(frozen=True)
class Traits:
    """A CPU with vector registers."""

    lanes: int
    """Floats in a vector register."""
    registers: int
    """Vector registers."""
    cores: int
    l2_bytes: int = 512 * 1024
    """Second cache, a core's share of it."""


class Layouts(Protocol):
    """Sizes that passes give the operands of products, so that register tiles cover them exactly."""

    def vector_lanes(self, columns: int) -> int:
        """Lanes of the vectors that divide ``columns`` contiguous results."""

    def rounded_rows(self, rows: int, columns: int) -> int:
        """Rows to compute of a product of ``rows`` x ``columns``: a few more where those have a much better tile."""

    def strip_width(self, rows: int, columns: int) -> int:
        """Columns of one strip of a packed second operand: those of a register tile."""


class Target(Protocol):
    """A machine that kernels are made for. A plain value: equal targets give equal kernels."""

    @property
    def traits(self) -> Traits:
        """What the machine has."""

    @property
    def layouts(self) -> Layouts:
        """How operands are laid out for its schedules."""

    def schedule(self, func: tirx.PrimFunc, decisions: Decisions = DEFAULTS) -> tirx.PrimFunc:
        """Schedule one kernel; one that comes scheduled, or that nothing suits, stays as it is.

        Raises
        ------
        DecisionError
            The schedule does not offer what is decided.
        """

    def options(self, func: tirx.PrimFunc, decisions: Decisions = DEFAULTS) -> dict[str, Choice]:
        """The choices of a kernel's schedule by name, behind some decisions."""

    def lower(self, func: tirx.PrimFunc) -> IRModule:
        """Lower a scheduled kernel to what the target's code generator takes, under its ``global_symbol``."""
