"""Register-tiled products: matrix products, convolutions and their gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm import s_tir, tirx
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm.tirx.analysis import undefined_vars

from ..decisions import Choices
from ..kernels import SMALL
from ..kernels.matmul import WIDENED
from ..loops import Unsuited, extent_of, extents_of, split_by_kind
from .blocks import blocks_pay, in_blocks
from .packing import is_wide, packing_pays
from .panels import panels, panels_pay
from .squares import TURNED
from .tile import MAKES_SECOND, block_by_block, choose_tile, pad_at_once, register_tile, rows_in_cache, split_phases
from .traits import CpuTraits
from .update_and_sum import sum_of, update_and_sum

SHARE_OF_TURNED = 1 / 8
"""Largest strip of a turned B, relative to the L2 cache, which also holds what is fetched ahead for the next strip."""
FEW_TERMS = 32
"""Most terms of sums that take longer to write than to compute on a wide core, if its second cache does not hold them:
whole rows lie side by side. From measurements on Zen 5 with 24 terms, images of 56x56 and 144 columns: tiles of 2 rows
are 1.3 times as fast from memory as 8 x 48 for a masked data gradient, 1.1 times for a forward product."""
MOST_SUMS = 3 / 4
"""Most sums of integers in registers, as a share of these: dot products read a word that is repeated from a register,
and not from memory as multiply-adds do. From measurements on Zen 5: 16 sums are 1.6 times as fast as 28."""


def product(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, choices: Choices) -> None:
    """Schedule ``Y[rows, columns] = sum A * B`` where B and Y are contiguous along the columns.

    Covers matrix products (also batched), convolutions (implicit GEMM: rows are pixels) and their data gradients (one
    convolution per stride phase). If B exceeds half of the L2 cache, strips of its columns are the outer loop, packed
    where that pays. If B is turned or widened first, each task makes a strip of its columns; one matrix that the L2
    cache holds is widened at once.

    Wide cores also pack strips of a smaller B, if the first cache does not hold them where they lie.

    If A is contiguous along the rows, as in a weight gradient, it may be packed as well (:func:`panels`). If there are
    few rows, B may be packed or turned block by block (:func:`in_blocks`).

    Decisions: ``tile``, ``widens_once``, ``columns_first``, ``panels``, ``blocks``, ``pack`` and those of
    :func:`register_tile`, of :func:`panels`, or of :func:`in_blocks`.
    """
    turned, widened, padding = (_producer(sch, block, mark) for mark in (TURNED, WIDENED, None))
    spatial, reduced = split_by_kind(sch, block)
    column = spatial[-1]
    operands = _operands(sch, block, spatial)
    height = math.prod(extents_of(sch, operands.rows))
    results = 4 * math.prod(extents_of(sch, spatial))
    rows, phases = split_phases(sch, block, operands.rows)
    terms, columns = math.prod(extents_of(sch, reduced)), extent_of(sch, column)
    vectors = _vectors_turned(terms, traits) if turned else None
    is_large = operands.size > traits.cache_bytes // 2
    is_integer = _is_integer(sch, block)
    tile = choose_tile(
        sch,
        rows,
        column,
        traits,
        choices,
        vectors=vectors,
        from_memory=is_large,
        most=MOST_SUMS * traits.registers if is_integer else None,
        joins=not is_integer,
        whole=is_wide(traits) and terms <= FEW_TERMS and results > traits.cache_bytes,
        breaks=True,
    )
    is_one = not operands.outer and operands.size > 4 * SMALL and not is_large
    if widened is not None and choices.choose("widens_once", (False, True), is_one):
        pad_at_once(sch, widened, tile.lanes)
        widened = None
    made = turned or widened
    strips = math.prod(extents_of(sch, operands.outer)) * (columns // tile.width)
    pays = packing_pays(height, terms, columns, tile, strips, traits)
    offered = (True,) if made else (False, True)
    columns_first = choices.choose("columns_first", offered, bool(made) or is_large or (pays and is_wide(traits)))
    first = _across_sum(sch, block)
    is_plain = columns_first and not turned and len(operands.rows) == len(reduced) == 1
    if (
        is_plain
        and first is not None
        and choices.choose("panels", (False, True), is_large and panels_pay(tile, traits))
    ):
        reads = (first, operands.index)
        panels(sch, block, tile, rows[0], column, reduced[0], traits, choices, outer=operands.outer, operands=reads)
        return
    turns_taps = turned is not None and len(reduced) > 1
    has_blocks = columns_first and not phases and columns > tile.width and extent_of(sch, reduced[-1]) > 1
    default = turns_taps or (is_large and blocks_pay(height, strips, tile, traits, is_turned=turned is not None))
    if has_blocks and choices.choose("blocks", (False, True), default):
        in_blocks(
            sch,
            block,
            tile,
            rows,
            column,
            reduced,
            traits,
            choices,
            outer=operands.outer,
            operand=operands.index,
            padding=padding,
            made=made,
        )
        return
    depth, parallel, pack = len(operands.outer), None, None
    if made:
        parallel = depth + 1 + len(rows)
    elif phases or padding is not None:
        parallel = depth + 2
    if columns_first and not made and choices.choose("pack", (False, True), pays):
        parallel, pack = depth + 1, operands.index
    register_tile(
        sch,
        block,
        tile,
        rows,
        column,
        reduced,
        traits,
        choices,
        outer=operands.outer,
        phases=phases,
        columns_first=columns_first,
        unroll_reduced=2 if phases else 0,
        parallel=parallel,
        pack=pack,
        made=made,
    )


def _producer(sch: s_tir.Schedule, block: SBlockRV, mark: str | None) -> SBlockRV | None:
    """Return the producer of ``block`` that has an annotation; for None, the one that makes no second operand."""
    producers = sch.get_producers(block)
    marks = [MAKES_SECOND & set(sch.get(each).annotations) for each in producers]
    return next((each for each, found in zip(producers, marks, strict=True) if found == {mark} - {None}), None)


def _is_integer(sch: s_tir.Schedule, block: SBlockRV) -> bool:
    return str(sch.get(block).writes[0].source.ty.dtype) == "int32"


def _vectors_turned(terms: int, traits: CpuTraits) -> int:
    """Return the width, in vectors, of a strip of ``terms`` rows of a turned B: at least :data:`NARROWEST`."""
    fewest = NARROWEST[traits.registers > FEW_REGISTERS]
    return max(fewest, int(SHARE_OF_TURNED * traits.cache_bytes) // (4 * terms * traits.lanes))


FEW_REGISTERS, NARROWEST = 16, {True: 2, False: 3}
"""Fewest vectors of a strip of a turned B, by whether there are many registers: in 16, tiles of four rows need three
vectors to hide the latency."""


PIXELS_APART, MOST_PIXELS = 1024, 64
"""Bytes of a pixel's channels of which a multiple lets the first cache hold so few pixels. From measurements on Zen 5:
256 and 512 channels are 1.4 times as fast in blocks of a row of 56 and 28 pixels as in larger ones."""


def weight_gradient(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, choices: Choices) -> None:
    """Schedule ``dW[.., r, s, i, o] = sum X * dY`` over pixels, in tiles of input by output channels, or its transpose.
    Where these are few, a tile has those of several taps. dY is packed in strips where that pays (:func:`product`).

    Decisions: those of :func:`update_and_sum`; or ``tile`` and those of :func:`block_by_block`, or ``pack`` and those
    of :func:`register_tile`.
    """
    spatial, reduced = split_by_kind(sch, block)
    *parts, r, s, row, column = spatial
    rows = [r, s, row]
    if sum_of(sch, block) is not None:
        operand = _operands(sch, block, spatial).index
        update_and_sum(sch, block, rows, column, reduced, traits, choices, operand=operand)
        return
    tile = choose_tile(sch, rows, column, traits, choices, parts=parts)
    if parts:
        most = rows_in_cache(sch, block, traits)
        if 4 * extent_of(sch, row) % PIXELS_APART == 0:
            most = min(most, MOST_PIXELS // extent_of(sch, reduced[-1]))
        block_by_block(sch, block, tile, rows, column, reduced, choices, tasks=parts, most=most)
        return
    if sch.get_producers(block):
        raise Unsuited("each task would pad all of X")
    operands, columns = _operands(sch, block, spatial), extent_of(sch, column)
    height, terms = (math.prod(extents_of(sch, loops)) for loops in (rows, reduced))
    is_held = 4 * terms * math.prod(extents_of(sch, [row])) <= traits.cache_bytes  # X, which every strip reads
    pays = is_wide(traits) and is_held and packing_pays(height, terms, columns, tile, columns // tile.width, traits)
    pack = choices.choose("pack", (False, True), pays)
    register_tile(
        sch,
        block,
        tile,
        rows,
        column,
        reduced,
        traits,
        choices,
        columns_first=pack,
        parallel=1 if pack else None,
        pack=operands.index if pack else None,
    )


@dataclass(frozen=True)
class _Operands:
    """Spatial loops of a product, by their use of its second operand, B."""

    index: int
    """Position of B among the block's reads."""
    outer: list[LoopRV]
    """Loops that B depends on: the batch."""
    rows: list[LoopRV]
    """Loops that B does not depend on."""
    size: int
    """Bytes of one B of the batch."""


def _operands(sch: s_tir.Schedule, block: SBlockRV, spatial: list[LoopRV]) -> _Operands:
    stmt = sch.get(block)
    variables = [iter_var.var for iter_var in stmt.iter_vars if int(iter_var.iter_type) == 0]
    for index, region in reversed(list(enumerate(stmt.reads))):
        if not region.region[-1].min.same_as(variables[-1]):
            continue
        varies = [any(_uses(at.min, var) for at in region.region) for var in variables[:-1]]
        outer = [loop for loop, is_outer in zip(spatial, varies, strict=False) if is_outer]
        rows = [loop for loop, is_outer in zip(spatial[:-1], varies, strict=True) if not is_outer]
        size = 4 * math.prod(int(extent) for extent in region.source.ty.shape)
        return _Operands(index, outer, rows, size // math.prod(extents_of(sch, outer)))
    raise Unsuited("no operand is contiguous along the columns of the result")


def _across_sum(sch: s_tir.Schedule, block: SBlockRV) -> int | None:
    """Return the position, among the block's reads, of a first operand that is contiguous along the rows."""
    stmt = sch.get(block)
    *_, row, _ = (iter_var.var for iter_var in stmt.iter_vars if int(iter_var.iter_type) == 0)
    found = [index for index, region in enumerate(stmt.reads) if region.region[-1].min.same_as(row)]
    return found[0] if found else None


def _uses(expr: tirx.Expr, variable: tirx.Var) -> bool:
    used = [] if isinstance(expr, tirx.IntImm) else undefined_vars(expr, [])
    return any(variable.same_as(other) for other in used)
