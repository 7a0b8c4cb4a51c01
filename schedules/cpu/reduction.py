"""Reductions over pixels or tokens, and row-wise kernels: softmax, layer and RMS norm."""

from __future__ import annotations

import math

from tvm import s_tir
from tvm.s_tir.schedule import LoopRV, SBlockRV

from ..decisions import Choices
from ..kernels import SMALL
from ..loops import Unsuited, extent_of, extents_of, is_reduction, split_by_kind
from .tile import vector_lanes, vectorize_inner
from .traits import CpuTraits


def channel_sum(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, choices: Choices) -> None:
    """Schedule ``Y[.., k] = sum X[.., k]`` with a few vectors of sums in registers.

    Decisions: ``vectors``.
    """
    for producer in sch.get_producers(block):
        sch.compute_inline(producer)
    (*outer, column), reduced = split_by_kind(sch, block)
    columns = extent_of(sch, column)
    lanes = vector_lanes(columns, traits.lanes)
    offered = [n for n in (4, 2, 8, 1, 3, 5, 6, 7) if columns // lanes % n == 0]
    vectors = choices.choose("vectors", offered, offered[0])
    column_outer, column_inner = sch.split(column, [None, lanes * vectors])
    vector_outer, vector = sch.split(column_inner, [None, lanes])
    sch.reorder(*outer, column_outer, *reduced, vector_outer, vector)
    result = sch.cache_write(block, 0, "local")
    sch.reverse_compute_at(result, column_outer)
    vectorize_inner(sch, result, lanes)
    sch.parallel(sch.fuse(*outer, column_outer))
    sch.vectorize(vector)
    sch.unroll(vector_outer)
    sch.decompose_reduction(block, reduced[0])


def row_wise(sch: s_tir.Schedule, choices: Choices, traits: CpuTraits) -> None:
    """Fuse blocks that reduce along the last axes of the same rows into one loop over rows.

    Applies to softmax, layer norm, RMS norm and their gradients: reductions over the last axes, then a result of full
    rank. A reduction accumulates vectors first, then sums their lanes.

    Decisions: ``parallel``, and ``<block>.vectors`` of each reduction.
    """
    *inner, last = sch.get_child_blocks(sch.get_sblock("root"))
    loops = sch.get_loops(last)
    reductions = [block for block in inner if is_reduction(sch, block)]
    depths = {len(split_by_kind(sch, block)[0]) for block in reductions}
    if len(depths) != 1 or is_reduction(sch, last) or not 0 < min(depths) < len(loops):
        raise Unsuited("no reductions over the same rows before the result")
    depth = depths.pop()
    rows = extents_of(sch, loops[:depth])
    for block in inner:
        if extents_of(sch, sch.get_loops(block))[:depth] != rows:
            raise Unsuited("not everything works on the same rows")
        if block not in reductions and len(sch.get_loops(block)) > depth and len(sch.get_consumers(block)) == 1:
            sch.compute_inline(block)
    work = math.prod(extents_of(sch, loops))
    partial = [_sum_by_lane(sch, block, depth, traits, choices) for block in reductions]
    row = sch.fuse(*loops[:depth]) if depth > 1 else loops[0]
    remaining = sch.get_child_blocks(sch.get_sblock("root"))[:-1]
    for block in reversed(remaining):
        sch.compute_at(block, row)
    for block in (*remaining, last):
        if not is_reduction(sch, block) and len(sch.get_loops(block)) > 1:
            vectorize_inner(sch, block, vector_lanes(extent_of(sch, sch.get_loops(block)[-1]), traits.lanes))
    if choices.choose("parallel", (False, True), work > SMALL):
        sch.parallel(row)
    for block in filter(None, partial):
        sch.set_scope(block, 0, "local")
        *_, lane, step = sch.get_loops(block)
        sch.reorder(step, lane)
        outer, vector = sch.split(lane, [None, traits.lanes])
        sch.unroll(outer)
        sch.vectorize(vector)
        sch.decompose_reduction(block, step)


def _sum_by_lane(
    sch: s_tir.Schedule, block: SBlockRV, depth: int, traits: CpuTraits, choices: Choices
) -> SBlockRV | None:
    """Split off a block that sums every n-th element of a row into n lanes; ``block`` then sums the lanes.

    Returns None where no n divides the row, or n is its length.
    """
    reduced = sch.get_loops(block)[depth:]
    loop: LoopRV = sch.fuse(*reduced) if len(reduced) > 1 else reduced[0]
    extent = extent_of(sch, loop)
    offered = [n for n in (4, 2, 1) if n * traits.lanes > 1 and extent % (n * traits.lanes) == 0]
    if not offered or offered[0] * traits.lanes == extent:
        return None
    vectors = choices.choose(f"{sch.get(block).name_hint}.vectors", offered, offered[0])
    return sch.rfactor(sch.split(loop, [None, vectors * traits.lanes])[1], depth)
