"""Depthwise convolution and its gradients: a few pixels of a vector of channels stay in registers."""

from __future__ import annotations

import itertools
import math

from tvm import s_tir
from tvm.s_tir.schedule import LoopRV, SBlockRV

from ..decisions import Choices
from ..extents import divisors
from ..target import Traits
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


def depthwise(sch: s_tir.Schedule, block: SBlockRV, traits: Traits, choices: Choices) -> None:
    """``Y[n, h, w, c] = sum_{r, s} X[n, .., c] * W[r, s, c]``, the taps unrolled.

    Pixels next to each other share inputs, which then are loaded once.
    """
    spatial, reduced = split_by_kind(sch, block)
    *rows, column = spatial
    _tile(sch, block, traits, rows, column, reduced, [], choices)


def data_gradient(sch: s_tir.Schedule, block: SBlockRV, traits: Traits, choices: Choices) -> None:
    """``dX[n, h, w, c] = sum_{r, s} dY[n, .., c] * W[r, s, c]``, phase by phase of a stride."""
    spatial, reduced = split_by_kind(sch, block)
    rows, phases = split_phases(sch, block, spatial[:-1])
    _tile(sch, block, traits, rows, spatial[-1], reduced, phases, choices)


def weight_gradient(sch: s_tir.Schedule, block: SBlockRV, traits: Traits, choices: Choices) -> None:
    """``dW[.., r, s, 0, c] = sum X[n, .., c] * dY[n, h, w, c]``: all taps of a vector of channels at a time."""
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
    traits: Traits,
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


def _tiles(rows: list[int], columns: int, traits: Traits) -> list[Tile]:
    """Tiles of one vector, most pixels first, and high ones before wide ones: they read from more places at a time.

    Unlike in a product every operand is a vector: weights and inputs want registers too, and get three of four.
    """
    _, height, width = rows
    lanes = vector_lanes(columns, traits.lanes)
    sizes = itertools.product(divisors(height), divisors(width))
    fitting = [(high, wide) for high, wide in sizes if high * wide <= traits.registers // 4]
    return [
        Tile((1, high, wide), lanes, 1) for high, wide in sorted(fitting, key=lambda size: (-math.prod(size), -size[0]))
    ]
