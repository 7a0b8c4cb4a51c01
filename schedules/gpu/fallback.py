"""Fallback schedule of any kernel: a thread an element, or the threads of a block a sum."""

from __future__ import annotations

import contextlib
import math

from tvm import s_tir, tirx
from tvm.s_tir.schedule import SBlockRV

from ..decisions import Choices
from ..loops import extents_of, is_reduction, split_by_kind
from .traits import GpuTraits

THREADS = (256, 128, 64)
"""Threads of a block, the default first."""


def fallback(sch: s_tir.Schedule, traits: GpuTraits, choices: Choices) -> None:
    """Inline element-wise producers, then bind each other block: a launch each.

    Decisions per block: ``<block>.threads``; ``<block>.together`` of a reduction: the threads that share one sum, 1 for
    a thread a sum.
    """
    root = sch.get_sblock("root")
    for block in sch.get_child_blocks(root)[:-1]:
        if not is_reduction(sch, block):
            with contextlib.suppress(s_tir.ScheduleError):
                sch.compute_inline(block)
    for block in sch.get_child_blocks(root):
        _keep_unread_results(sch, block)
        bind(sch, block, traits, choices)


def _keep_unread_results(sch: s_tir.Schedule, block: SBlockRV) -> None:
    """Keep in registers what a block computes and nothing reads: the maximum beside its place."""
    own = set(sch.get(sch.get_sblock("root")).alloc_buffers)
    for consumer in sch.get_consumers(block):
        own -= {region.source for region in sch.get(consumer).reads}
    for index, region in enumerate(sch.get(block).writes):
        if region.source in own:
            sch.set_scope(block, index, "local")


def bind(sch: s_tir.Schedule, block: SBlockRV, traits: GpuTraits, choices: Choices) -> None:
    """Bind the loops of a block: spatial ones to blocks and threads, those of a long reduction to threads."""
    if not sch.get_loops(block):  # a number
        sch.bind(sch.add_unit_loop(block), "threadIdx.x")
        return
    spatial, reduced = split_by_kind(sch, block)
    name = sch.get(block).name_hint
    offered = [threads for threads in THREADS if threads <= traits.threads] or [traits.threads]
    threads = choices.choose(f"{name}.threads", offered, offered[0])
    sums, terms = (math.prod(extents_of(sch, loops)) for loops in (spatial, reduced))
    if not spatial:
        spatial = [sch.add_unit_loop(reduced[0])]
    if reduced:
        sch.reorder(*spatial, *reduced)
    outer = sch.fuse(*spatial) if len(spatial) > 1 else spatial[0]
    if reduced and is_plain(sch, block):
        together = choices.choose(f"{name}.together", (1, *offered), threads if _shares(sums, terms, traits) else 1)
        if together > 1:
            inner = sch.fuse(*reduced) if len(reduced) > 1 else reduced[0]
            sch.bind(outer, "blockIdx.x")
            sch.bind(sch.split(inner, [None, together])[1], "threadIdx.x")
            return
    blocks, lane = sch.split(outer, [None, threads])
    sch.bind(blocks, "blockIdx.x")
    sch.bind(lane, "threadIdx.x")
    if reduced:
        sch.decompose_reduction(block, reduced[0])


def _shares(sums: int, terms: int, traits: GpuTraits) -> bool:
    """Return whether a thread a sum would leave most of the GPU idle, and each sum is long."""
    return terms >= 2 * traits.warp and sums < 4 * traits.warp * traits.cores


def is_plain(sch: s_tir.Schedule, block: SBlockRV) -> bool:
    """Return whether a reduction has one result: TVM shares only those among threads."""
    return isinstance(sch.get(block).body, tirx.BufferStore)
