"""Layers in eight bits over planes of words: tiles of output channels by vectors of pixels."""

from __future__ import annotations

from tvm import s_tir
from tvm.s_tir.schedule import LoopRV, SBlockRV

from ..decisions import Choices
from ..extents import divisors
from ..kernels.plane_taps import BORDERS, PIXELS, ROWS, VECTORS, WORDS_OF_TAPS
from ..kernels.quantized import WORD
from ..kernels.word_planes import BIASED
from ..loops import Unsuited, extent_of, is_reduction, split_by_kind
from .traits import CpuTraits

MOST_SUMS = 20
"""Most vectors of sums of a tile: those of pixels, and what requantises, take the other registers."""
MOST_VECTORS = 8
"""Most vectors of pixels of a depthwise tile whose sums need not be in registers at once. By packets on v66, of a 3x3
layer of 32 x 32 pixels 7,982 with one, 6,727 with two, 5,174 with four, 4,394 with eight, 4,281 with sixteen."""
MOST_BORDERS = 128
"""Most vectors of borders that are constants of the code: rows of an odd number of pixels have as many as pixels."""


def convolution(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, choices: Choices) -> None:
    """Schedule ``A[n, g, b, p] = sum_{r, s, i} dot(X[n, i, ..p], W[r, s, i, 4 g + b])``: a vector of X for all channels
    of a tile, each with a number.

    Decisions: ``tile``, words of channels and vectors of pixels.
    """
    (_, g, _, p), _ = split_by_kind(sch, block)
    groups, vectors = _tile(choices, extent_of(sch, g), _vectors(sch, p, traits))
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
    read the same words, and vectors below one another the same rows. Sums over rows whose words of taps are stored stay
    in registers.

    Decisions: ``vectors`` of pixels.
    """
    made, has_rows = sch.get_producers(block), is_reduction(sch, block)
    if has_rows:
        _begin_with_bias(sch, block)
        last = _epilogue(sch, block)
    else:
        last = block
        while consumers := sch.get_consumers(last):
            sch.compute_inline(last)
            (last,) = consumers
    n, g, *rest, p = sch.get_loops(last)
    most = MOST_SUMS // WORD if has_rows else MOST_VECTORS
    offered = [each for each in divisors(_vectors(sch, p, traits)) if each <= most]
    vectors = choices.choose("vectors", offered, max(offered))
    task = sch.fuse(n, g)
    place, vector, lane = sch.split(p, [None, vectors, PIXELS])
    sch.reorder(task, place, *rest, vector, lane)
    if has_rows:
        sch.compute_at(block, place, preserve_unit_loops=True)
    _finish(sch, [*rest, vector], lane)
    sch.parallel(task)
    if has_rows:
        byte, p, row = sch.get_loops(block)[4:]
        vector, lane = sch.split(p, [None, PIXELS])
        sch.reorder(row, byte, vector, lane)
        _finish(sch, [row, byte, vector], lane)
    _copies(sch, made, task)
    if has_rows:
        sch.decompose_reduction(block, row)


def _vectors(sch: s_tir.Schedule, pixels: LoopRV, traits: CpuTraits) -> int:
    """Return the vectors of a plane."""
    if traits.lanes != PIXELS or extent_of(sch, pixels) % PIXELS:
        raise Unsuited("planes are no whole vectors")
    return extent_of(sch, pixels) // PIXELS


def _tile(choices: Choices, groups: int, count: int) -> tuple[int, int]:
    """Return the words of channels, and the vectors of pixels, of a tile.

    By default one word of channels, whose bias and rescaling numbers stay in registers from one vector of pixels to the
    next, and two vectors of pixels, which are rescaled together. Larger tiles spill these numbers.
    """
    offered = [(high, wide) for high in divisors(groups) for wide in divisors(count) if high * wide * WORD <= MOST_SUMS]
    default = (1, min((wide for high, wide in offered if high == 1), key=lambda wide: (abs(wide - 2), -wide)))
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
    """Copy planes, and words of taps, in each task. Borders are the same for all: constant vectors, stored once."""
    before: dict[str, SBlockRV] = {}
    for block in made:
        name = sch.get(block).name_hint
        if name == BORDERS:
            shift, pixel = sch.get_loops(block)
            if extent_of(sch, shift) * extent_of(sch, pixel) <= MOST_BORDERS * PIXELS:
                vector, lane = sch.split(pixel, [None, PIXELS])
                _finish(sch, [shift, vector], lane)
            continue
        before |= {sch.get(each).name_hint: each for each in sch.get_producers(block)}
        sch.compute_at(block, task, preserve_unit_loops=True)
        *_, high, phase, vector, lane = sch.get_loops(block)
        if name == ROWS:
            _finish(sch, [high, phase, vector], lane)
        if name.startswith((VECTORS, WORDS_OF_TAPS)):
            sch.reorder(vector, high, phase, lane)
            _finish(sch, [high, phase], lane)
    if before:
        _copies(sch, list(before.values()), task)
