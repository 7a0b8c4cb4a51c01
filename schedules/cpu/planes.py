"""Layers in eight bits over planes of words: tiles of output channels by vectors of pixels."""

from __future__ import annotations

import math

from tvm import s_tir
from tvm.s_tir.schedule import LoopRV, SBlockRV

from ..decisions import Choices
from ..extents import divisors
from ..kernels.quantized import WORD
from ..kernels.word_planes import BIASED, BORDERS, PIXELS, VECTORS
from ..loops import Unsuited, extent_of, split_by_kind
from .traits import CpuTraits

MOST_SUMS = 20
"""Most vectors of sums of a tile: those of pixels, and what requantises, take the other registers."""
LONG_SUMS = 16
"""Multiply-adds of a sum from which a default tile has more channels than pixels. By packets on v66, of one word by two
vectors against two words by one vector: 4,847 and 7,413 for sums of 10 words, 2,383 and 2,371 for 12, 15,726 and 14,407
for 24."""


def convolution(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, choices: Choices) -> None:
    """Schedule ``A[n, g, b, p] = sum_{r, s, i} dot(X[n, i, ..p], W[r, s, i, 4 g + b])``: a vector of X for all channels
    of a tile, each with a number.

    Decisions: ``tile``, words of channels and vectors of pixels.
    """
    (_, g, _, p), reduced = split_by_kind(sch, block)
    length = math.prod(extent_of(sch, each) for each in reduced)
    groups, vectors = _tile(choices, extent_of(sch, g), _vectors(sch, p, traits), length)
    made = sch.get_producers(block)
    _begin_with_bias(sch, block)
    epilogue = _epilogue(sch, block)
    n, g, *rest, p = sch.get_loops(epilogue)
    outer, channel = sch.split(g, [None, groups])
    place, vector, lane = sch.split(p, [None, vectors, PIXELS])
    sch.reorder(n, outer, place, channel, *rest, vector, lane)
    sch.compute_at(block, place, preserve_unit_loops=True)
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
    while consumers := sch.get_consumers(block):
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


def _tile(choices: Choices, groups: int, count: int, length: int) -> tuple[int, int]:
    """Return the words of channels, and the vectors of pixels, of a tile whose sums have ``length`` multiply-adds.

    By default one word of channels, whose bias and rescaling numbers stay in registers from one vector of pixels to the
    next; two for long sums. Larger tiles spill these numbers.
    """
    offered = [(high, wide) for high in divisors(groups) for wide in divisors(count) if high * wide * WORD <= MOST_SUMS]
    default = (1, min((wide for high, wide in offered if high == 1), key=lambda wide: (abs(wide - 2), -wide)))
    if length >= LONG_SUMS and groups % 2 == 0:
        default = (2, 1)
    return choices.choose("tile", offered, default)


def _begin_with_bias(sch: s_tir.Schedule, block: SBlockRV) -> None:
    """Begin sums with their bias, if they have one."""
    for consumer in sch.get_consumers(block):
        if sch.get(consumer).name_hint == BIASED:
            sch.fuse_reduction_epilogue(block, consumer)


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
