"""Products of training: matrix products, convolutions and their gradients, as register tiles."""

from __future__ import annotations

import math

from tvm import s_tir, tirx
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm.tirx.analysis import undefined_vars

from .tile import Unsuited, blocked_sum, choose_tile, extents_of, register_tile, split_by_kind, split_phases
from .traits import Traits

LONG_SUM = 2048
"""Terms of a sum from which a strip of the second operand, a few vectors wide, no longer fits into the second cache."""


def product(sch: s_tir.Schedule, block: SBlockRV, traits: Traits) -> None:
    """``Y[rows, columns] = sum A * B`` where B, and Y, are contiguous along the columns.

    A matrix product (batches of it too) or a convolution (implicit GEMM: rows are pixels). Where B is larger than half
    of the second cache, strips of its columns are the outer loop.
    """
    spatial, reduced = split_by_kind(sch, block)
    column = spatial[-1]
    outer, rows, strip_bytes = _operands(sch, block, spatial)
    columns_first = strip_bytes > traits.l2_bytes // 2
    tile = choose_tile(sch, rows, column, traits)
    if math.prod(extents_of(sch, reduced)) > LONG_SUM and not sch.get_consumers(block) and columns_first:
        blocked_sum(sch, block, tile, rows, column, reduced, outer=outer)
        return
    parallel = 2 + len(outer) if sch.get_producers(block) else None
    register_tile(sch, block, tile, rows, column, reduced, outer=outer, columns_first=columns_first, parallel=parallel)


def data_gradient(sch: s_tir.Schedule, block: SBlockRV, traits: Traits) -> None:
    """``dX[n, h, w, i]`` from a weight that is contiguous along i: a convolution for each phase of a stride."""
    spatial, reduced = split_by_kind(sch, block)
    _operands(sch, block, spatial)
    rows, phases = split_phases(sch, block, spatial[:-1])
    tile = choose_tile(sch, rows, spatial[-1], traits)
    parallel = 2 if phases or sch.get_producers(block) else None
    unroll_reduced = 2 if phases else 0
    register_tile(
        sch,
        block,
        tile,
        rows,
        spatial[-1],
        reduced,
        phases=phases,
        unroll_reduced=unroll_reduced,
        parallel=parallel,
    )


def weight_gradient(sch: s_tir.Schedule, block: SBlockRV, traits: Traits) -> None:
    """``dW[.., r, s, i, o] = sum X * dY`` over pixels: a tile is some channels i by some channels o."""
    spatial, reduced = split_by_kind(sch, block)
    *outer, rows, column = spatial
    padded, chunked = bool(sch.get_producers(block)), len(spatial) == 6
    if padded and not chunked:
        raise Unsuited("each task would pad all of X")
    tile = choose_tile(sch, [rows], column, traits)
    register_tile(sch, block, tile, [rows], column, reduced, outer=outer, parallel=2 if padded else None)


def _operands(sch: s_tir.Schedule, block: SBlockRV, spatial: list[LoopRV]) -> tuple[list[LoopRV], list[LoopRV], int]:
    """Loops over results that B depends on (a batch of products), those that it does not, and the bytes of one B."""
    stmt = sch.get(block)
    variables = [iter_var.var for iter_var in stmt.iter_vars if int(iter_var.iter_type) == 0]
    for region in reversed(stmt.reads):
        if not region.region[-1].min.same_as(variables[-1]):
            continue
        varies = [any(_uses(at.min, var) for at in region.region) for var in variables[:-1]]
        outer = [loop for loop, is_outer in zip(spatial, varies, strict=False) if is_outer]
        rows = [loop for loop, is_outer in zip(spatial[:-1], varies, strict=True) if not is_outer]
        size = 4 * math.prod(int(extent) for extent in region.source.ty.shape)
        return outer, rows, size // math.prod(extents_of(sch, outer))
    raise Unsuited("no operand is contiguous along the columns of the result")


def _uses(expr: tirx.Expr, variable: tirx.Var) -> bool:
    used = [] if isinstance(expr, tirx.IntImm) else undefined_vars(expr, [])
    return any(variable.same_as(other) for other in used)
