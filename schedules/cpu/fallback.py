"""What any kernel gets that no rule knows: inlined, parallel outside, vectorised inside."""

from __future__ import annotations

import contextlib

from tvm import s_tir

LANES = 16


def fallback(sch: s_tir.Schedule) -> None:
    """Inline element-wise producers, then run each remaining block parallel over its outer and vectorised over its
    inner loop."""
    root = sch.get_sblock("root")
    for block in sch.get_child_blocks(root)[:-1]:
        if not _is_reduction(sch, block):
            with contextlib.suppress(s_tir.ScheduleError):
                sch.compute_inline(block)
    for block in sch.get_child_blocks(root):
        _parallel_and_vector(sch, block)


def _is_reduction(sch: s_tir.Schedule, block: s_tir.schedule.SBlockRV) -> bool:
    return any(iter_var.iter_type == 2 for iter_var in sch.get(block).iter_vars)


def _parallel_and_vector(sch: s_tir.Schedule, block: s_tir.schedule.SBlockRV) -> None:
    loops = sch.get_loops(block)
    kinds = [iter_var.iter_type for iter_var in sch.get(block).iter_vars]
    if len(kinds) != len(loops) or any(kind not in (0, 2) for kind in kinds):
        return
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == 0]
    reduced = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == 2]
    if not spatial:
        return
    inner = spatial[-1]
    lanes = next((lanes for lanes in (LANES, 8, 4) if int(sch.get(inner).extent) % lanes == 0), 1)
    outer = list(spatial[:-1])
    if lanes > 1:
        head, inner = sch.split(inner, [None, lanes])
        outer.append(head)
    elif reduced:
        outer.append(inner)
    sch.reorder(*outer, *reduced, *([inner] if lanes > 1 or not reduced else []))
    if outer:
        sch.parallel(sch.fuse(*outer))
    if lanes > 1:
        sch.vectorize(inner)
    if reduced:
        sch.decompose_reduction(block, sch.get_loops(block)[1 if outer else 0])
