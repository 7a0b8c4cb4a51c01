"""Products written as loops, inside kernels that no schedule primitive makes: tiles of sums in registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..emit import INDEX, unrolled, vector
from .emit import Number, buffer, loop
from .traits import CpuTraits

Element = Callable[[tirx.Expr, tirx.Expr], tirx.Expr]
"""Returns an element of a matrix, by row and column."""


class Tiles(NamedTuple):
    """Tiles of rows, or of columns, of one size."""

    first: int
    """First row of the first tile."""
    tiles: Number
    size: int


@dataclass(frozen=True)
class RegisterTile:
    """Rows, and columns as vectors of lanes, of the sums that registers hold."""

    rows: int
    vectors: int
    lanes: int

    @property
    def columns(self) -> int:
        """Columns in the tile."""
        return self.vectors * self.lanes


def register_tile(columns: int, lanes: int, traits: CpuTraits, *, even: bool = False) -> RegisterTile:
    """Return a tile for products with so many columns: at most four vectors wide, and as high as registers allow; with
    ``even``, a power of two."""
    vectors = min(WIDEST, max(1, columns // lanes))
    rows = min(HIGHEST, max(1, (traits.registers - 1) // vectors - 1))
    return RegisterTile(1 << (rows.bit_length() - 1) if even else rows, vectors, lanes)


WIDEST, HIGHEST = 4, 8
"""Most vectors and rows of a tile: more sums than these hide any latency."""


def tiles_of(extent: int, size: int, reach: tirx.Expr | None = None) -> list[Tiles]:
    """Return tiles that cover an extent: those of a ``size``, then one of what is left.

    ``reach``, a multiple of ``size`` or the extent: where to end."""
    whole, rest = divmod(extent, size)
    if reach is None:
        return [Tiles(0, whole, size)] * bool(whole) + [Tiles(whole * size, 1, rest)] * bool(rest)
    found = [Tiles(0, tirx.min(tirx.floordiv(reach, size), whole), size)] * bool(whole)
    is_reached = tirx.Select(reach > whole * size, tirx.const(1, INDEX), tirx.const(0, INDEX))
    return found + [Tiles(whole * size, is_reached, rest)] * bool(rest)


def column_tiles(extent: int, tile: RegisterTile, reach: tirx.Expr | None = None) -> list[tuple[Tiles, int]]:
    """Return tiles that cover columns, each with the lanes of its vectors: the last columns may be short of a vector.

    ``reach``: as of :func:`tiles_of`, of whole tiles."""
    found = []
    for tiles in tiles_of(extent, tile.columns, reach):
        vectors, rest = divmod(tiles.size, tile.lanes)
        if vectors:
            found.append((Tiles(tiles.first, tiles.tiles, vectors * tile.lanes), tile.lanes))
        if rest:
            found.append((Tiles(tiles.first + vectors * tile.lanes, tiles.tiles, rest), rest))
    return found


class Packed(NamedTuple):
    """A matrix that is packed by tiles of its columns: all terms of a tile lie together."""

    buffer: tirx.Buffer
    terms: int

    def place(self, term: tirx.Expr, first: tirx.Expr, width: int, column: tirx.Expr) -> tirx.Expr:
        """Return the place of an element: by term, first column and width of its tile, and column within it."""
        return first * self.terms + term * width + column

    def element(self, term: tirx.Expr, first: tirx.Expr, width: int, column: tirx.Expr) -> tirx.Expr:
        """Return an element, by its place."""
        return self.buffer[self.place(term, first, width, column)]


def multiply(
    rows: list[Tiles],
    columns: list[tuple[Tiles, int]],
    terms: Number,
    left: Element,
    right: Callable[[tirx.Expr, tirx.Expr, int, tirx.Expr], tirx.Expr],
    store: Callable[[tirx.Expr, tirx.Expr, tirx.Expr], None],
    dtype: str,
    start: Element | None = None,
) -> None:
    """Write the loops of ``sum_k A[row, k] * B[k, column]``.

    ``left``: element of A, by row and term. ``right``: element of B, by term, first column and size of the tile, and
    column within it; contiguous along the column. ``store`` writes a sum, by row and column. ``start``: what is added
    to.
    """
    for across, lanes in columns:
        for down in rows:
            with loop(across.tiles) as i, loop(down.tiles) as j:
                column, row = across.first + i * across.size, down.first + j * down.size
                _tile(row, down.size, column, across.size, lanes, terms, left, right, store, dtype, start)


def _tile(
    row: tirx.Expr,
    height: int,
    column: tirx.Expr,
    width: int,
    lanes: int,
    terms: Number,
    left: Element,
    right: Callable[[tirx.Expr, tirx.Expr, int, tirx.Expr], tirx.Expr],
    store: Callable[[tirx.Expr, tirx.Expr, tirx.Expr], None],
    dtype: str,
    start: Element | None,
) -> None:
    sums = buffer("sums", height * width, dtype, scope="local")

    def each(body: Callable[[tirx.Expr, tirx.Expr, tirx.Expr], None]) -> None:
        """Write ``body`` for each sum, by its place in ``sums``, row and column within the tile."""
        with unrolled(height) as r, unrolled(width // lanes) as v, vector(lanes) as lane:
            body(r * width + v * lanes + lane, r, v * lanes + lane)

    zero = tirx.const(0, dtype)
    each(lambda at, r, c: T.buffer_store(sums, start(row + r, column + c) if start else zero, [at]))
    with loop(terms) as k:
        each(lambda at, r, c: T.buffer_store(sums, sums[at] + left(row + r, k) * right(k, column, width, c), [at]))
    each(lambda at, r, c: store(row + r, column + c, sums[at]))
