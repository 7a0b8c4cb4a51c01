"""Depthwise convolution and its gradients: register tiles of a few pixels by one vector of channels."""

from __future__ import annotations

import itertools
import math

from tvm import s_tir
from tvm.s_tir.schedule import LoopRV, SBlockRV

from ..decisions import Choices
from ..extents import divisors
from .tile import (
    Tile,
    block_by_block,
    choose_tile,
    decided_tile,
    extent_of,
    extents_of,
    register_tile,
    rows_in_cache,
    split_by_kind,
    split_phases,
    vector_lanes,
)
from .traits import CpuTraits


def depthwise(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, choices: Choices) -> None:
    """Schedule ``Y[n, h, w, c] = sum_{r, s} X[n, .., c] * W[r, s, c]`` with the taps unrolled.

    Adjacent pixels of a tile share input loads.
    """
    spatial, reduced = split_by_kind(sch, block)
    *rows, column = spatial
    _tile(sch, block, traits, rows, column, reduced, [], choices)


def data_gradient(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, choices: Choices) -> None:
    """Schedule ``dX[n, h, w, c] = sum_{r, s} dY[n, .., c] * W[r, s, c]``, one stride phase at a time."""
    spatial, reduced = split_by_kind(sch, block)
    rows, phases = split_phases(sch, block, spatial[:-1])
    _tile(sch, block, traits, rows, spatial[-1], reduced, phases, choices)


def weight_gradient(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, choices: Choices) -> None:
    """Schedule ``dW[.., r, s, 0, c] = sum X[n, .., c] * dY[n, h, w, c]`` in tiles of taps by channel vectors."""
    spatial, reduced = split_by_kind(sch, block)
    *parts, r, s, one, column = spatial
    tile = choose_tile(sch, [r, s, one], column, traits, choices)
    if parts:
        most = rows_in_cache(sch, block, traits)
        block_by_block(sch, block, tile, [r, s, one], column, reduced, choices, tasks=parts, most=most)
    else:
        register_tile(sch, block, tile, [r, s, one], column, reduced, traits, choices)


def _tile(
    sch: s_tir.Schedule,
    block: SBlockRV,
    traits: CpuTraits,
    rows: list[LoopRV],
    column: LoopRV,
    reduced: list[LoopRV],
    phases: list[LoopRV],
    choices: Choices,
) -> None:
    tile = decided_tile(choices, _tiles(extents_of(sch, rows), extent_of(sch, column), traits))
    parallel = 2 if phases or sch.get_producers(block) else None
    register_tile(
        sch, block, tile, rows, column, reduced, traits, choices, phases=phases, unroll_reduced=2, parallel=parallel
    )


def _tiles(rows: list[int], columns: int, traits: CpuTraits) -> list[Tile]:
    """Return tiles of one channel vector, most pixels first, and tall before wide: they read more rows at a time.

    Results get a quarter of the registers: unlike in a matrix product, weights and inputs are vectors too. A core
    without vectors is a microcontroller's, with little memory: there wide tiles come first, which pad fewer rows.
    """
    _, height, width = rows
    lanes = vector_lanes(columns, traits.lanes)
    sizes = itertools.product(divisors(height), divisors(width))
    fitting = [(high, wide) for high, wide in sizes if high * wide <= traits.registers // 4]
    first = 1 if traits.lanes == 1 else -1
    fitting.sort(key=lambda size: (-math.prod(size), first * size[0]))
    return [Tile((1, high, wide), lanes, 1) for high, wide in fitting]
