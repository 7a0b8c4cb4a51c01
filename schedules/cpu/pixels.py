"""Pixels of few channels, quantised into words: a vector of neighbours at a time."""

from __future__ import annotations

from tvm import s_tir
from tvm.s_tir.schedule import SBlockRV

from ..decisions import Choices
from ..extents import divisors
from ..loops import Unsuited, extent_of
from .tile_cost import vector_lanes
from .traits import CpuTraits

MOST_VECTORS = 4
"""Most vectors of a row that are computed side by side."""


def pixels(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, choices: Choices) -> None:
    """Schedule ``Y[.., w, 0]``, words of pixels, along the row: where an image has planes, channels are vectors there.

    Decisions: ``vectors``.
    """
    for producer in sch.get_producers(block):
        sch.compute_inline(producer)
    if sch.get_consumers(block):
        raise Unsuited("words are read by products alone")
    *outer, row, word = sch.get_loops(block)
    column = sch.fuse(row, word)
    lanes = vector_lanes(extent_of(sch, column), traits.lanes)
    offered = [n for n in divisors(extent_of(sch, column) // lanes) if n <= MOST_VECTORS]
    vectors = choices.choose("vectors", offered, offered[-1])
    tile, unrolled, vector = sch.split(column, [None, vectors, lanes])
    task = sch.fuse(*outer, tile) if outer else tile
    sch.parallel(task)
    sch.unroll(unrolled)
    sch.vectorize(vector)
