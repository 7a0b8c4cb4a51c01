"""Blocks and loops of a kernel that is being scheduled: what schedules of every back end ask of them."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import s_tir, tirx
from tvm.s_tir.schedule import LoopRV, SBlockRV


class Unsuited(Exception):
    """Mismatch of a schedule and a kernel: the next rule is tried."""


def extent_of(sch: s_tir.Schedule, loop: LoopRV) -> int:
    """Return the extent of a loop, which must be constant."""
    extent = sch.get(loop).extent
    if not isinstance(extent, tirx.IntImm):
        raise Unsuited("the extent of a loop is not constant")
    return int(extent)


def extents_of(sch: s_tir.Schedule, loops: Sequence[LoopRV]) -> list[int]:
    """Return the extent of each loop."""
    return [extent_of(sch, loop) for loop in loops]


def is_reduction(sch: s_tir.Schedule, block: SBlockRV) -> bool:
    """Return whether a block has a reduction axis."""
    return any(int(iter_var.iter_type) == 2 for iter_var in sch.get(block).iter_vars)


def split_by_kind(sch: s_tir.Schedule, block: SBlockRV) -> tuple[list[LoopRV], list[LoopRV]]:
    """Return the spatial loops and the reduction loops of an unscheduled block."""
    kinds = [int(iter_var.iter_type) for iter_var in sch.get(block).iter_vars]
    loops = sch.get_loops(block)
    if len(loops) != len(kinds) or any(kind not in (0, 2) for kind in kinds):
        raise Unsuited("a block whose loops are not its own")
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == 0]
    return spatial, [loop for loop, kind in zip(loops, kinds, strict=True) if kind == 2]
