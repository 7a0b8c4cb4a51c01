"""Matrix products, convolutions (implicit GEMM) and their gradients, in tiles."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import SBlockRV
from tvm.sym import Analyzer

from ...decisions import Choices
from ...loops import loads_of
from ..emit import lanes_of_load, lanes_of_value
from ..traits import GpuTraits
from .contraction import SHORT, contraction_of, extents_of, flat, narrowed
from .matrix import WarpTiled
from .matrix_tiles import warp_tiles
from .simd import SimdTiled, simd_tiles
from .tiled import ThreadTiled, Tiled
from .tiles import Problem, Tile, choose_tile, tiles


def product(sch: s_tir.Schedule, block: SBlockRV, traits: GpuTraits, choices: Choices) -> tirx.PrimFunc:
    """Write a product anew, in tiles.

    Decisions: ``tile``: rows, columns and terms of a block, rows and columns of a thread; or, on matrix units, of a
    warp, and in CUDA steps in shared memory. ``splits``: blocks that share a sum. Each then leaves its part in scratch,
    and another launch adds them, in order.
    """
    func = sch.mod["main"]
    contraction = contraction_of(sch, block)
    if not traits.simd_matrices:
        contraction = narrowed(contraction)
    terms = flat(contraction.reduced)
    most = terms if isinstance(terms, int) else int(Analyzer().const_int_bound(terms).max_value)
    factors = ((contraction.left, contraction.rows), (contraction.right, contraction.columns))
    lanes = [
        max(lanes_of_load(value, along, lanes_of_value(value)) for along in (axes, contraction.reduced))
        for value, axes in factors
    ]
    types = [str(value.ty.dtype) for value, _ in factors]
    widths = [tvm.DataType(dtype).itemsize for dtype in types]
    scratch = sum(_elements(value) for value, _ in factors) if isinstance(terms, int) else 0
    problem = Problem(*extents_of(contraction), most, (lanes[0], lanes[1]), (widths[0], widths[1]), scratch)
    offered: Mapping[tuple[int, ...], Tile]
    if _on_matrix_units(types[0], types[1], contraction.dtype, traits):
        offered = {astuple(tile): tile for tile in warp_tiles(traits, widths[0])}
        tiled: type[Tiled] = WarpTiled
    elif traits.simd_matrices and types == [contraction.dtype] * 2 == ["float32"] * 2:
        offered = {astuple(tile): tile for tile in simd_tiles(traits)}
        tiled = SimdTiled
    else:
        offered = {astuple(tile): tile for tile in tiles(traits, problem.widths)}
        tiled = ThreadTiled
    tile, splits = choose_tile(problem, offered, traits, choices)
    return func.with_body(tiled(contraction, tile, splits).written())


def _on_matrix_units(left: str, right: str, sums: str, traits: GpuTraits) -> bool:
    """Return whether matrix units multiply factors of these types."""
    able = (*SHORT, "float32") if traits.tf32 else SHORT
    return traits.matrix_units and left == right and left in able and sums == "float32"


def _elements(value: tirx.Expr) -> int:
    """Return the elements of what a factor reads first. Parts of sums are to take no more memory than the factors."""
    return next((math.prod(int(extent) for extent in load.source.shape) for load in loads_of(value)), 0)
