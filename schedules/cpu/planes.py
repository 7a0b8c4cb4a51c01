"""Layers in eight bits over planes of words: tiles of output channels by vectors of pixels."""

from __future__ import annotations

from tvm import s_tir
from tvm.s_tir.schedule import LoopRV, SBlockRV

from ..decisions import Choices
from ..extents import divisors
from ..kernels.quantized import WORD
from ..kernels.word_planes import BORDERS, PIXELS, VECTORS
from ..loops import Unsuited, extent_of, split_by_kind
from .traits import CpuTraits

MOST_SUMS = 20
"""Most vectors of sums of a tile: those of pixels, and what requantises, take the other registers."""


def convolution(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, choices: Choices) -> None:
    """Schedule ``A[n, g, b, p] = sum_{r, s, i} dot(X[n, i, ..p], W[r, s, i, 4 g + b])``: a vector of X for all channels
    of a tile, each with a number.

    Decisions: ``tile``, words of channels and vectors of pixels.
    """
    (_, g, _, p), _ = split_by_kind(sch, block)
    groups, vectors = _tile(choices, extent_of(sch, g), _vectors(sch, p, traits))
    made = sch.get_producers(block)
    epilogue = _epilogue(sch, block)
    n, g, *rest, p = sch.get_loops(epilogue)
    outer, channel = sch.split(g, [None, groups])
    place, vector, lane = sch.split(p, [None, vectors, PIXELS])
    sch.reorder(n, place, outer, channel, *rest, vector, lane)
    sch.compute_at(block, outer, preserve_unit_loops=True)
    _finish(sch, [channel, *rest, vector], lane)
    channel, byte, p, *reduced = sch.get_loops(block)[4:]
    vector, lane = sch.split(p, [None, PIXELS])
    sch.reorder(*reduced, channel, byte, vector, lane)
    _finish(sch, [channel, byte, vector], lane)
    sch.parallel(n)
    _copies(sch, made, n)
    sch.decompose_reduction(block, reduced[0])


def depthwise(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, choices: Choices) -> None:
    """Schedule ``A[n, g, b, p] = sum_{r, s} dot(X[n, g, ..p], W[r, s, 4 g + b])`` with the taps unrolled: four channels
    read the same words.

    Decisions: ``vectors`` of pixels.
    """
    made = sch.get_producers(block)
    consumers = sch.get_consumers(block)
    if consumers:
        sch.compute_inline(block)
        (block,) = consumers
    n, g, *rest, p = sch.get_loops(block)
    offered = [each for each in divisors(_vectors(sch, p, traits)) if each <= MOST_SUMS // WORD]
    vectors = choices.choose("vectors", offered, min(offered, key=lambda each: abs(each - 2)))
    task = sch.fuse(n, g)
    place, vector, lane = sch.split(p, [None, vectors, PIXELS])
    sch.reorder(task, place, *rest, vector, lane)
    _finish(sch, [*rest, vector], lane)
    sch.parallel(task)
    _copies(sch, made, task)


def _vectors(sch: s_tir.Schedule, pixels: LoopRV, traits: CpuTraits) -> int:
    """Return the vectors of a plane."""
    if traits.lanes != PIXELS or extent_of(sch, pixels) % PIXELS:
        raise Unsuited("planes are no whole vectors")
    return extent_of(sch, pixels) // PIXELS


def _tile(choices: Choices, groups: int, count: int) -> tuple[int, int]:
    """Return the words of channels, and the vectors of pixels, of a tile: most sums first, then as many of the one
    as of the other."""
    offered = [(high, wide) for high in divisors(groups) for wide in divisors(count) if high * wide * WORD <= MOST_SUMS]
    offered.sort(key=lambda tile: (-tile[0] * tile[1], abs(tile[0] - tile[1])))
    return choices.choose("tile", offered, offered[0])


def _epilogue(sch: s_tir.Schedule, block: SBlockRV) -> SBlockRV:
    """Keep sums in registers, and return the block that writes what is made of them, or a copy."""
    consumers = sch.get_consumers(block)
    if not consumers:
        return sch.cache_write(block, 0, "local")
    sch.set_scope(block, 0, "local")
    (epilogue,) = consumers
    return epilogue


def _finish(sch: s_tir.Schedule, unrolled: list[LoopRV], lane: LoopRV) -> None:
    for loop in unrolled:
        sch.unroll(loop)
    sch.vectorize(lane)


def _copies(sch: s_tir.Schedule, made: list[SBlockRV], task: LoopRV) -> None:
    """Copy planes in each task. Borders are the same for all."""
    for block in made:
        if sch.get(block).name_hint == BORDERS:
            continue
        before = sch.get_producers(block)
        sch.compute_at(block, task, preserve_unit_loops=True)
        if sch.get(block).name_hint.startswith(VECTORS):
            *_, phase, _, lane = sch.get_loops(block)
            sch.unroll(phase)
            sch.vectorize(lane)
        _copies(sch, before, task)
