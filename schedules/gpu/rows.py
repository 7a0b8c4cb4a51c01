"""Row-wise kernels: softmax, cross-entropy, layer and RMS norm, and their gradients. A thread block a row."""

from __future__ import annotations

import math

from tvm import DataType, s_tir
from tvm.s_tir.schedule import SBlockRV

from ..decisions import Choices
from ..loops import Unsuited, extents_of, is_reduction, split_by_kind
from .fallback import is_plain
from .traits import GpuTraits


def rows(sch: s_tir.Schedule, traits: GpuTraits, choices: Choices) -> None:
    """Fuse blocks that reduce along the last axes of the same rows into one launch, a thread block a row.

    Applies to reductions over the last axes, then a result of full rank. The threads of a block share each sum, in a
    fixed order; what they hand on to each other lies in shared memory.

    Decisions: ``threads``.
    """
    *inner, last = sch.get_child_blocks(sch.get_sblock("root"))
    loops = sch.get_loops(last)
    reductions = [block for block in inner if is_reduction(sch, block)]
    depths = {len(split_by_kind(sch, block)[0]) for block in reductions}
    if len(depths) != 1 or is_reduction(sch, last) or not 0 < min(depths) < len(loops):
        raise Unsuited("no reductions over the same rows before the result")
    if not all(is_plain(sch, block) for block in reductions):
        raise Unsuited("a reduction that no threads share")
    depth = depths.pop()
    leading = extents_of(sch, loops[:depth])
    for block in inner:
        if extents_of(sch, sch.get_loops(block))[:depth] != leading:
            raise Unsuited("not everything works on the same rows")
    length = math.prod(extents_of(sch, loops[depth:]))
    if length == 1:
        raise Unsuited("rows of one element have nothing to share")
    offered = [threads for threads in (32, 64, 128, 256) if threads <= traits.threads]
    threads = choices.choose("threads", offered, next((n for n in offered if 4 * n >= length), offered[-1]))
    kept = 0
    for block in inner:
        if block in reductions:
            continue
        if len(sch.get_loops(block)) == depth or len(sch.get_consumers(block)) == 1:
            sch.compute_inline(block)
        else:
            kept += math.prod(extents_of(sch, sch.get_loops(block)[depth:])) * _itemsize(sch, block)
    if kept > traits.shared_bytes // 2:
        raise Unsuited("rows too long for shared memory")
    row = sch.fuse(*loops[:depth]) if depth > 1 else loops[0]
    remaining = sch.get_child_blocks(sch.get_sblock("root"))[:-1]
    for block in reversed(remaining):
        sch.compute_at(block, row)
        sch.set_scope(block, 0, "shared")
    sch.bind(row, "blockIdx.x")
    for block in (*remaining, last):
        own = sch.get_loops(block)[1:] or [sch.add_unit_loop(block)]
        along = sch.fuse(*own) if len(own) > 1 else own[0]
        sch.bind(sch.split(along, [None, threads])[1], "threadIdx.x")


def _itemsize(sch: s_tir.Schedule, block: SBlockRV) -> int:
    return max(DataType(region.source.ty.dtype.dtype).itemsize for region in sch.get(block).writes)
