"""Interface between the passes and a back end: traits, layouts, schedules, lowering."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tvm import IRModule, tirx

from .decisions import DEFAULTS, Choice, Decide, Decisions

GENERIC = "pock.generic"
"""Attribute of a scheduled kernel that no rule suits: it has the fallback schedule, for kernels of any kind."""


@dataclass(frozen=True, kw_only=True)
class Traits(ABC):
    """Machine parameters that passes read. Each back end adds those of its schedules: vectors, warps, matrix units."""

    cores: int
    """Cores, or multiprocessors, that run tasks side by side: 1 where schedules are serial."""
    cache_bytes: int
    """Cache per core that a task shares with no other core, in bytes."""
    alignment: int = 64
    """Alignment of what lies in the arena, in bytes: a cache line, or what a device takes as a binding's offset."""
    arguments: int = sys.maxsize
    """Most operands and results of a kernel."""

    @property
    def cached_bytes(self) -> int:
        """Bytes that a cache which all cores share may hold of one operand: no target says how large it is."""
        return 4 * self.cores * self.cache_bytes

    @property
    @abstractmethod
    def peak(self) -> float:
        """Multiply-adds that can start at once, for ratios between machines."""


class Layouts(Protocol):
    """Operands of products as schedules like them: their order, and sizes with which register tiles leave no tail."""

    @property
    def reads_across(self) -> bool:
        """Whether a product reads an operand across as fast as along its columns: none is then transposed for it."""

    @property
    def masks_edges(self) -> bool:
        """Whether products mask what lies beyond their operands and results, and split long sums themselves: nothing is
        padded, rounded up or split for them."""

    def padded_columns(self, columns: int) -> int:
        """Return the columns to compute of a product, at least ``columns``: more where that fills whole vectors."""

    def computed_columns(self, rows: int, columns: int) -> int:
        """Return the columns to compute of a ``rows`` x ``columns`` product whose kernel widens its second operand."""

    def rounded_rows(self, rows: int, columns: int) -> int:
        """Return the rows to compute of a ``rows`` x ``columns`` product, at least ``rows``: slightly more for a
        much better tile."""

    def strip_width(self, rows: int, columns: int) -> int:
        """Return the columns per strip of a packed second operand: the width of a register tile, or 0 not
        to pack it."""

    def transposes_alone(self, shape: Sequence[int], axes: Sequence[int], dtype: str) -> bool:
        """Return whether a transpose of ``shape`` is best a kernel of its own, not fused with its neighbours."""

    def fuses_attention(self, width: int, dtype: str, masks: int) -> bool:
        """Return whether attention with heads of ``width`` elements, and so many masks, is best one kernel, which never
        holds all scores."""

    @property
    def arguments(self) -> int:
        """Most operands and results that a kernel has."""

    @property
    def word_planes(self) -> bool:
        """Whether layers in eight bits best have pixels in vectors: planes of words (schedules/kernels)."""

    @property
    def joins_attention(self) -> bool:
        """Whether the gradients of queries, keys and values are best one kernel, which computes the scores once."""

    @property
    def fuses_updates(self) -> bool:
        """Whether the product that computes a gradient may update the weight."""


class Target(Protocol):
    """A machine to compile kernels for. A plain value: equal targets give equal kernels."""

    @property
    def traits(self) -> Traits:
        """Traits of the machine."""

    @property
    def is_gpu(self) -> bool:
        """Whether entry points are lists of launches, not functions of a library."""

    @property
    def layouts(self) -> Layouts:
        """Operand layouts that suit the target's schedules."""

    def schedule(self, func: tirx.PrimFunc, decisions: Decisions = DEFAULTS) -> tirx.PrimFunc:
        """Schedule one kernel. One that comes scheduled (``schedules.kernels.comes_scheduled``), or that no rule
        suits, is returned unchanged.

        Raises
        ------
        DecisionError
            A decision names a choice or an option that the schedule does not offer.
        """

    def options(
        self, func: tirx.PrimFunc, decisions: Decisions | Decide = DEFAULTS, space: str | None = None
    ) -> dict[str, Choice]:
        """Return the choices that a kernel's schedule offers under ``decisions``, by name, in the order they are made.

        ``space`` names a schedule to take instead of the target's own (:mod:`schedules.spaces`), as decisions for it
        do by themselves."""

    def walk(
        self, func: tirx.PrimFunc, decisions: Decisions | Decide, space: str | None = None
    ) -> tuple[tirx.PrimFunc, dict[str, Choice]]:
        """Return what :meth:`schedule` and :meth:`options` do, by one run of the schedule."""

    def lower(self, func: tirx.PrimFunc) -> IRModule:
        """Lower a scheduled kernel to a module for the target's code generator, under its ``global_symbol``.

        A kernel that needs scratch (:meth:`scratch_bytes`) takes its address as its last operand.
        """

    def loops(self, func: tirx.PrimFunc) -> IRModule:
        """Lower a scheduled kernel to flat loops over memory, under its ``global_symbol``: what TVM's ``MakePackedAPI``
        takes in a build of TVM's. A GPU's are device functions, and the host function that launches them."""

    def code(self, func: tirx.PrimFunc) -> bytes:
        """Return the code of a scheduled kernel: an object file, or text with its launches."""

    def scratch_bytes(self, func: tirx.PrimFunc) -> int:
        """Return the bytes of memory that a scheduled kernel needs besides its operands, for all its workers."""
