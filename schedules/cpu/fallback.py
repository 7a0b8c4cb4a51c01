"""Fallback schedule of any kernel: inlined, parallel outer loops, vectorised inner loop."""

from __future__ import annotations

import contextlib
import math

from tvm import s_tir
from tvm.s_tir.schedule import LoopRV, SBlockRV

from ..decisions import Choices
from ..extents import divisors
from ..kernels import SMALL
from ..loops import Unsuited, extent_of, extents_of, is_reduction, split_by_kind
from .tile_cost import vector_lanes
from .traits import CpuTraits


def fallback(sch: s_tir.Schedule, choices: Choices, traits: CpuTraits) -> None:
    """Inline element-wise producers, then parallelise outer loops and vectorise the inner loop of each other block.

    Decisions per block: ``<block>.lanes`` and ``<block>.parallel`` (number of outer loops), or ``<block>.squares``.
    """
    root = sch.get_sblock("root")
    for block in sch.get_child_blocks(root)[:-1]:
        if not is_reduction(sch, block):
            with contextlib.suppress(s_tir.ScheduleError):
                sch.compute_inline(block)
    for block in sch.get_child_blocks(root):
        with contextlib.suppress(Unsuited):
            _parallel_and_vector(sch, block, traits, choices)


def _parallel_and_vector(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, choices: Choices) -> None:
    spatial, reduced = split_by_kind(sch, block)
    if not spatial:
        return
    work = math.prod(extents_of(sch, sch.get_loops(block)))
    name = sch.get(block).name_hint
    across = None if reduced else _read_across(sch, block, spatial)
    if across is not None and choices.choose(f"{name}.squares", (False, True), work > SMALL):
        _square_tiles(sch, spatial, across, traits)
        return
    columns = extent_of(sch, spatial[-1])
    offered = [n for n in divisors(columns) if n <= traits.lanes]
    lanes = choices.choose(f"{name}.lanes", offered, vector_lanes(columns, traits.lanes))
    outer, inner = sch.split(spatial[-1], [None, lanes])
    sch.reorder(*spatial[:-1], outer, *reduced, inner)
    loops = [*spatial[:-1], outer]
    default = _parallel_loops(extents_of(sch, loops), traits) if work > SMALL else 0
    rows = choices.choose(f"{name}.parallel", range(len(loops) + 1), default)
    if rows:
        sch.parallel(sch.fuse(*loops[:rows]))
    if lanes > 1:
        sch.vectorize(inner)
    if reduced:
        sch.decompose_reduction(block, reduced[0])


def _read_across(sch: s_tir.Schedule, block: SBlockRV, spatial: list[LoopRV]) -> int | None:
    """Return the index of a loop, not the last, that is contiguous in an input: a transpose. None without."""
    stmt = sch.get(block)
    variables = [iter_var.var for iter_var in stmt.iter_vars]
    for region in stmt.reads:
        for position, var in enumerate(variables[:-1]):
            if len(region.region) > 1 and region.region[-1].min.same_as(var) and extent_of(sch, spatial[position]) > 1:
                return position
    return None


def _square_tiles(sch: s_tir.Schedule, spatial: list[LoopRV], across: int, traits: CpuTraits) -> None:
    """Tile in squares, so that each cache line that is read is used up before its eviction."""
    lanes = [vector_lanes(extent_of(sch, spatial[axis]), traits.lanes) for axis in (across, -1)]
    outer, inner = zip(
        *(sch.split(spatial[axis], [None, size]) for axis, size in zip((across, -1), lanes, strict=True)), strict=True
    )
    rest = [loop for axis, loop in enumerate(spatial[:-1]) if axis != across]
    sch.reorder(*rest, *outer, *inner)
    sch.parallel(sch.fuse(*rest, *outer))
    sch.unroll(inner[0])
    if lanes[1] > 1:
        sch.vectorize(inner[1])


def _parallel_loops(extents: list[int], traits: CpuTraits) -> int:
    """Return the fewest outer loops that give balanced work to all cores. Fewer loops mean cheaper index arithmetic."""
    for count in range(1, len(extents) + 1):
        tasks = math.prod(extents[:count])
        if tasks % traits.cores == 0 or tasks >= 8 * traits.cores:
            return count
    return len(extents)
