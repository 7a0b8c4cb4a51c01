"""Register-tiled products: matrix products, convolutions and their gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm import s_tir, tirx
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm.tirx.analysis import undefined_vars

from ..decisions import Choices
from ..loops import Unsuited, extent_of, extents_of, split_by_kind
from .panels import panels, panels_pay
from .squares import TURNED
from .tile import block_by_block, choose_tile, is_balanced, register_tile, rows_in_cache, split_phases
from .tile_cost import Tile, stream_of
from .traits import CpuTraits

SHARE_OF_TURNED = 1 / 8
"""Largest strip of a turned B, relative to the L2 cache, which also holds what is fetched ahead for the next strip."""
PACKED_ROWS = {True: 224, False: 512}
"""Fewest result rows for which packing a strip of B pays on a core that is not wide, by whether the rows of B begin in
few sets of a cache: those of a multiple of :data:`SHARED_SETS` bytes do. From measurements with weights that are in no
cache, as in a training step: of 768 columns, packing is 0.97 times as fast for 256 rows, and 1.03 times for 1024."""
SHARED_SETS = 2048
"""Bytes between rows that share an eighth of the sets of a cache with 1024 or 2048, or fewer."""
WIDE = 32
"""Fewest numbers that a wide core multiplies and adds in a cycle: two vectors of AVX-512."""
PACKED_ROWS_OF_WIDE = {True: 32, False: 112}
"""The same for wide cores, by whether all rows of B begin in one set of a first cache. From measurements on Zen 5,
weights in no cache: for 49 rows, packing 4 MB of 2048 columns is 1.3 times as fast, of 512 0.9 to 1.0 times; for 128
rows of 768 columns 1.1 times."""
UNPACKED_STREAM = 0.4
"""Share of what the L2 cache delivers from which wide cores do not read an unpacked strip of B. From measurements on
Zen 5: packing strips for tiles of 4 rows is 1.1 to 1.4 times as fast, and 0.95 to 1.0 times for tiles of 14."""
MOST_SUMS = 3 / 4
"""Most sums of integers in registers, as a share of these: dot products read a word that is repeated from a register,
and not from memory as multiply-adds do. From measurements on Zen 5: 16 sums are 1.6 times as fast as 28."""
WAY, WAYS = 4096, 16
"""Bytes of a way of a first cache, within which each line has a set of its own, and twice the fewest ways that one has:
most of a strip that is little larger stays there."""


def product(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, choices: Choices) -> None:
    """Schedule ``Y[rows, columns] = sum A * B`` where B and Y are contiguous along the columns.

    Covers matrix products (also batched), convolutions (implicit GEMM: rows are pixels) and their data gradients (one
    convolution per stride phase). If B exceeds half of the L2 cache, strips of its columns are the outer loop, packed
    where that pays. If B is turned first, each task turns a strip of its columns.

    Wide cores also pack strips of a smaller B, if the first cache does not hold them where they lie.

    If A is contiguous along the rows, as in a weight gradient, it may be packed as well (:func:`panels`).

    Decisions: ``tile``, ``columns_first``, ``panels``, ``pack`` and those of :func:`register_tile`, or of
    :func:`panels`.
    """
    turned = next((each for each in sch.get_producers(block) if TURNED in sch.get(each).annotations), None)
    spatial, reduced = split_by_kind(sch, block)
    column = spatial[-1]
    operands = _operands(sch, block, spatial)
    height = math.prod(extents_of(sch, operands.rows))
    rows, phases = split_phases(sch, block, operands.rows)
    vectors = _vectors_turned(math.prod(extents_of(sch, reduced)), traits) if turned else None
    is_large = operands.size > traits.cache_bytes // 2
    most = MOST_SUMS * traits.registers if _is_integer(sch, block) else None
    tile = choose_tile(sch, rows, column, traits, choices, vectors=vectors, from_memory=is_large, most=most)
    columns = extent_of(sch, column)
    strips = math.prod(extents_of(sch, operands.outer)) * (columns // tile.width)
    pays = _packing_pays(height, math.prod(extents_of(sch, reduced)), columns, tile, strips, traits)
    offered = (True,) if turned else (False, True)
    columns_first = choices.choose("columns_first", offered, bool(turned) or is_large or (pays and is_wide(traits)))
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
    depth, parallel, pack = len(operands.outer), None, None
    if turned:
        parallel = depth + 1 + len(rows)
    elif phases or sch.get_producers(block):
        parallel = depth + 2
    if columns_first and not turned and choices.choose("pack", (False, True), pays):
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
        turned=turned,
    )


def _is_integer(sch: s_tir.Schedule, block: SBlockRV) -> bool:
    return str(sch.get(block).writes[0].source.ty.dtype) == "int32"


def is_wide(traits: CpuTraits) -> bool:
    """Return whether a core multiplies so many numbers a cycle that it waits for what is not packed."""
    return traits.fma_ports * traits.lanes >= WIDE


def _packing_pays(height: int, terms: int, columns: int, tile: Tile, strips: int, traits: CpuTraits) -> bool:
    """Return whether each of ``strips`` tasks best copies its strip of B, [terms, columns], for ``height`` rows."""
    if columns == tile.width or not is_balanced(strips, traits):
        return False
    are_many = height >= PACKED_ROWS[4 * columns % SHARED_SETS == 0]
    is_large = 4 * terms * columns > traits.cache_bytes // 2
    if not is_wide(traits) or (are_many and is_large):
        return are_many
    places, size = WAY // math.gcd(4 * columns, WAY), 4 * terms * tile.width
    if not WAYS * min(WAY, 4 * places * tile.width) <= size <= traits.cache_bytes // 2:
        return False
    if 4 * terms * columns <= traits.cache_bytes and stream_of(tile, traits) < UNPACKED_STREAM:
        return False
    return height >= PACKED_ROWS_OF_WIDE[places == 1]


def _vectors_turned(terms: int, traits: CpuTraits) -> int:
    """Return the width, in vectors, of a strip of ``terms`` rows of a turned B: at least two."""
    return max(2, int(SHARE_OF_TURNED * traits.cache_bytes) // (4 * terms * traits.lanes))


def weight_gradient(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, choices: Choices) -> None:
    """Schedule ``dW[.., r, s, i, o] = sum X * dY`` over pixels, in tiles of input by output channels. Where these are
    few, a tile has those of several taps. dY is packed in strips where that pays (:func:`product`).

    Decisions: ``tile`` and those of :func:`block_by_block`, or ``pack`` and those of :func:`register_tile`.
    """
    spatial, reduced = split_by_kind(sch, block)
    *parts, r, s, row, column = spatial
    rows = [r, s, row]
    tile = choose_tile(sch, rows, column, traits, choices, parts=parts)
    if parts:
        most = rows_in_cache(sch, block, traits)
        block_by_block(sch, block, tile, rows, column, reduced, choices, tasks=parts, most=most)
        return
    if sch.get_producers(block):
        raise Unsuited("each task would pad all of X")
    operands, columns = _operands(sch, block, spatial), extent_of(sch, column)
    height, terms = (math.prod(extents_of(sch, loops)) for loops in (rows, reduced))
    is_held = 4 * terms * math.prod(extents_of(sch, [row])) <= traits.cache_bytes  # X, which every strip reads
    pays = is_wide(traits) and is_held and _packing_pays(height, terms, columns, tile, columns // tile.width, traits)
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
