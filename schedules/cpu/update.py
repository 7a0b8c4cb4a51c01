"""In-place optimizer updates: parallel rows of vectors."""

from __future__ import annotations

from tvm import s_tir
from tvm.s_tir.schedule import SBlockRV

from ..decisions import Choices
from ..kernels import SMALL
from ..loops import Unsuited, extents_of
from .traits import CpuTraits

ROW_LENGTHS = (4096, 1024, 256, 64)
"""Elements per task of an update that covers one long row, best first."""


def update(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, choices: Choices) -> None:
    """Run rows in parallel, and the elements of a row as vectors. The tail of a row is a scalar loop.

    Decisions: ``parallel``, ``lanes`` and, where there is one row, ``row_length``.
    """
    if sch.get_producers(block):
        raise Unsuited("the epilogue of a product")
    row, column = sch.get_loops(block)
    rows, columns = extents_of(sch, [row, column])
    work = rows * columns
    if rows == 1:
        offered = [length for length in ROW_LENGTHS if columns % length == 0] or [columns]
        columns = choices.choose("row_length", offered, offered[0])
        outer, column = sch.split(column, [None, columns])
        row = sch.fuse(row, outer)
    offered = [lanes for lanes in (1, 2, 4, 8, 16) if lanes <= min(columns, traits.lanes)]
    lanes = choices.choose("lanes", offered, traits.lanes if traits.lanes in offered else 1)
    is_parallel = choices.choose("parallel", (False, True), work > SMALL)
    if columns % lanes:
        column = sch.loop_partition(column, [columns // lanes * lanes, None])[0]
    if lanes > 1:
        sch.vectorize(sch.split(column, [None, lanes])[1])
    if is_parallel:
        sch.parallel(row)
