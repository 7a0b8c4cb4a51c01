"""What any kernel gets that no rule knows: inlined, parallel outside, vectorised inside."""

from __future__ import annotations

import contextlib
import math

from tvm import s_tir
from tvm.s_tir.schedule import SBlockRV

from .reduction import SMALL
from .tile import Unsuited, extents_of, is_reduction, split_by_kind, vector_lanes
from .traits import Traits


def fallback(sch: s_tir.Schedule, traits: Traits) -> None:
    """Inline element-wise producers, then run each remaining block parallel over its outer and vectorised over its
    inner loop."""
    root = sch.get_sblock("root")
    for block in sch.get_child_blocks(root)[:-1]:
        if not is_reduction(sch, block):
            with contextlib.suppress(s_tir.ScheduleError):
                sch.compute_inline(block)
    for block in sch.get_child_blocks(root):
        with contextlib.suppress(Unsuited):
            _parallel_and_vector(sch, block, traits)


def _parallel_and_vector(sch: s_tir.Schedule, block: SBlockRV, traits: Traits) -> None:
    spatial, reduced = split_by_kind(sch, block)
    if not spatial:
        return
    work = math.prod(extents_of(sch, sch.get_loops(block)))
    lanes = vector_lanes(int(sch.get(spatial[-1]).extent), traits.lanes)
    outer, inner = sch.split(spatial[-1], [None, lanes])
    sch.reorder(*spatial[:-1], outer, *reduced, inner)
    rows = _parallel_loops(extents_of(sch, [*spatial[:-1], outer]), traits)
    if work > SMALL:
        sch.parallel(sch.fuse(*[*spatial[:-1], outer][:rows]))
    if lanes > 1:
        sch.vectorize(inner)
    if reduced:
        sch.decompose_reduction(block, reduced[0])


def _parallel_loops(extents: list[int], traits: Traits) -> int:
    """How many of the outer loops it takes to have work for all cores, evenly: few, for cheap indices inside."""
    for count in range(1, len(extents) + 1):
        tasks = math.prod(extents[:count])
        if tasks % traits.cores == 0 or tasks >= 8 * traits.cores:
            return count
    return len(extents)
