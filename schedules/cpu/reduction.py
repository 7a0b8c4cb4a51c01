"""Sums over pixels or tokens: one for each channel."""

from __future__ import annotations

from tvm import s_tir
from tvm.s_tir.schedule import SBlockRV

from ..decisions import Choices
from ..extents import divisors
from ..loops import extent_of, split_by_kind
from .tile import vectorize_inner
from .tile_cost import vector_lanes
from .traits import CpuTraits

STRIP = 1024
"""Most columns whose sums one task keeps, in its first cache."""
MOST_ROWS = 8
"""Most rows whose elements are summed in registers before the sums in cache are touched."""


def channel_sum(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, choices: Choices) -> None:
    """Schedule ``Y[.., k] = sum X[.., k]`` along the rows, as they lie in memory.

    A task has a strip of columns, and keeps their sums in the first cache. It goes through a few rows side by side,
    with a few vectors of sums in registers.

    Decisions: ``vectors``, ``strip`` (in tiles of so many vectors) and ``rows``.
    """
    for producer in sch.get_producers(block):
        sch.compute_inline(producer)
    (*outer, column), reduced = split_by_kind(sch, block)
    columns = extent_of(sch, column)
    lanes = vector_lanes(columns, traits.lanes)
    offered = [n for n in (4, 2, 8, 1, 3, 5, 6, 7) if columns // lanes % n == 0]
    vectors = choices.choose("vectors", offered, offered[0])
    strips = divisors(columns // (lanes * vectors))
    strip = choices.choose("strip", strips, max(n for n in strips if n == 1 or n * vectors * lanes <= STRIP))
    *others, last = reduced
    rounds = divisors(extent_of(sch, last))
    rows = choices.choose("rows", rounds, max(n for n in rounds if n <= MOST_ROWS))
    strip_outer, column = sch.split(column, [None, strip * vectors * lanes])
    tile, column = sch.split(column, [None, vectors * lanes])
    vector_outer, vector = sch.split(column, [None, lanes])
    last_outer, row = sch.split(last, [None, rows])
    sch.reorder(*outer, strip_outer, *others, last_outer, tile, row, vector_outer, vector)
    task = sch.fuse(*outer, strip_outer)
    result = sch.cache_write(block, 0, "local")
    sch.reverse_compute_at(result, task)
    vectorize_inner(sch, result, lanes)
    sch.parallel(task)
    sch.vectorize(vector)
    sch.unroll(vector_outer)
    sch.unroll(row)
    sch.decompose_reduction(block, (*others, last_outer)[0])
