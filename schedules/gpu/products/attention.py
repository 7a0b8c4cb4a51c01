"""Attention and its gradients (:mod:`schedules.kernels.attention`), without their scores in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import TypeVar

from tvm import s_tir, tirx
from tvm.s_tir.schedule import SBlockRV
from tvm.script.ir_builder import tirx as T

from ...decisions import Choices
from ...kernels.attention import Scoring, element, inverse_of, number, sums_of
from ...loops import Unsuited
from ..traits import GpuTraits
from .contraction import INDEX, Axis
from .weighted import ABOVE, BELOW, SUMS, Place, Product, Softmax, Weighted, WeightTile, written
from .weighted_threads import ThreadBlock, ThreadTile
from .weighted_warps import StripTile, WarpBlock, multiplies

AnyTile = TypeVar("AnyTile", ThreadTile, StripTile)
GRADIENT_OPERANDS = 7
"""Operands of a gradient of queries or keys besides masks: three operands and their result's gradient, two statistics,
and the result."""
WIDEST = 128
"""Most elements of a head: the sums of more do not fit into a thread's registers."""
TILES = (
    ThreadTile(64, 64, 16, 4, 4),
    ThreadTile(64, 32, 16, 4, 4),
    ThreadTile(32, 32, 16, 4, 4),
    ThreadTile(32, 32, 8, 4, 4),
    ThreadTile(16, 32, 8, 2, 4),
)
"""Tiles to choose from, those that read least first."""
STRIPS = (
    StripTile(128, 64),
    StripTile(64, 64),
    StripTile(64, 32),
    StripTile(64, 16),
    StripTile(32, 32),
    StripTile(32, 16),
    StripTile(16, 16),
)
"""Tiles on matrix units."""


def forward(sch: s_tir.Schedule, block: SBlockRV, traits: GpuTraits, choices: Choices) -> tirx.PrimFunc:
    """Write attention anew: rows are queries, columns keys.

    Decisions: ``tile``: rows and columns of scores of a block. Without matrix units, also terms at once, and rows and
    columns of a thread.
    """
    func = sch.mod["main"]
    q, k, v, *masks, out, statistics = func.params
    scores = _Scores(sch, block, out, q, k, masks)
    safe = bool(sch.get(block).annotations["safe"])

    def store_statistics(row: Sequence[tirx.Expr], largest: tirx.Expr, inverse: tirx.Expr) -> None:
        for index, value in enumerate((largest, inverse)):
            T.buffer_store(statistics, value, [*row, index])

    weighted = Weighted(
        scores.batch, scores.queries, scores.keys, width := _axis("width", v),
        (scores.product(q, k),),
        scores.score,
        number(v, (*scores.at, scores.keys.var, width.var)),
        _store(out, 1.0), ABOVE if scores.scoring.causal else None,
        Softmax(lambda total: inverse_of(total, safe=safe), store_statistics),
    )  # fmt: skip
    return func.with_body(_written(weighted, traits, choices))


def query_gradient(sch: s_tir.Schedule, block: SBlockRV, traits: GpuTraits, choices: Choices) -> tirx.PrimFunc:
    """Write the gradient of queries anew: rows are queries, columns keys.

    Decisions: as of :func:`forward`.
    """
    func = sch.mod["main"]
    q, k, v, *masks, statistics, grad, along, out = func.params
    scores = _Scores(sch, block, out, q, k, masks)
    weighted = Weighted(
        scores.batch, scores.queries, scores.keys, width := _axis("width", k),
        (scores.product(q, k), scores.product(grad, v)),
        lambda products, at: scores.gradient(products, at, statistics, along),
        number(k, (*scores.at, scores.keys.var, width.var)),
        _store(out, scores.scoring.scale), ABOVE if scores.scoring.causal else None,
    )  # fmt: skip
    return func.with_body(_written(weighted, traits, choices))


def key_gradient(sch: s_tir.Schedule, block: SBlockRV, traits: GpuTraits, choices: Choices) -> tirx.PrimFunc:
    """Write the gradient of keys anew: rows are keys, columns queries.

    Decisions: as of :func:`forward`.
    """
    func = sch.mod["main"]
    q, k, v, *masks, statistics, grad, along, out = func.params
    scores = _Scores(sch, block, out, q, k, masks)
    weighted = Weighted(
        scores.batch, scores.keys, scores.queries, width := _axis("width", q),
        (scores.product(q, k).turned, scores.product(grad, v).turned),
        lambda products, at: scores.gradient(products, _turned(at), statistics, along),
        number(q, (*scores.at, scores.queries.var, width.var)),
        _store(out, scores.scoring.scale), BELOW if scores.scoring.causal else None,
    )  # fmt: skip
    return func.with_body(_written(weighted, traits, choices))


def value_gradient(sch: s_tir.Schedule, block: SBlockRV, traits: GpuTraits, choices: Choices) -> tirx.PrimFunc:
    """Write the gradient of values anew: rows are keys, columns queries.

    Decisions: as of :func:`forward`.
    """
    func = sch.mod["main"]
    q, k, *masks, statistics, grad, out = func.params
    scores = _Scores(sch, block, out, q, k, masks)
    weighted = Weighted(
        scores.batch, scores.keys, scores.queries, width := _axis("width", grad),
        (scores.product(q, k).turned,),
        lambda products, at: scores.probability(products, _turned(at), statistics),
        number(grad, (*scores.at, scores.queries.var, width.var)),
        _store(out, 1.0), BELOW if scores.scoring.causal else None,
    )  # fmt: skip
    return func.with_body(_written(weighted, traits, choices))


class _Scores:
    """Scores of a kernel: their axes, and how they are made."""

    def __init__(
        self,
        sch: s_tir.Schedule,
        block: SBlockRV,
        out: tirx.Buffer,
        q: tirx.Buffer,
        k: tirx.Buffer,
        masks: Sequence[tirx.Buffer],
    ) -> None:
        self.scoring = Scoring.of(sch.get(block).annotations, masks)
        self.batch = tuple(
            Axis(tirx.Var(f"outer{index}", INDEX), int(extent)) for index, extent in enumerate(out.shape[:-2])
        )
        self.at = [axis.var for axis in self.batch]
        self.queries, self.keys = (
            Axis(tirx.Var(name, INDEX), int(each.shape[-2])) for name, each in (("query", q), ("key", k))
        )

    def product(self, queries: tirx.Buffer, keys: tirx.Buffer) -> Product:
        """Return the product of two operands, of rows of queries and of keys."""
        terms = _axis("term", queries)
        return Product(
            number(queries, (*self.at, self.queries.var, terms.var)),
            number(keys, (*self.at, self.keys.var, terms.var)),
            terms,
        )

    def score(self, products: Sequence[tirx.Expr], at: Place) -> tirx.Expr:
        """Return a score, of the product of its query and key."""
        return self.scoring.score(products[0], at)

    def probability(self, products: Sequence[tirx.Expr], at: Place, statistics: tirx.Buffer) -> tirx.Expr:
        """Return an element of the softmax, of the product of its query and key."""
        return self.scoring.probability(products[0], statistics, at)

    def gradient(
        self, products: Sequence[tirx.Expr], at: Place, statistics: tirx.Buffer, along: tirx.Buffer
    ) -> tirx.Expr:
        """Return the gradient of a product of query and key, of itself and of that of the result's gradient and the
        value."""
        *row, _ = at
        probability = self.scoring.probability(products[0], statistics, at)
        return self.scoring.gradient(probability * (products[1] - element(along, row)), at)


def _turned(at: Place) -> Place:
    *batch, row, column = at
    return (*batch, column, row)


def _axis(name: str, operand: tirx.Buffer) -> Axis:
    """Return the last axis of an operand."""
    return Axis(tirx.Var(name, INDEX), int(operand.shape[-1]))


def _store(out: tirx.Buffer, scale: float) -> Callable[[tirx.Expr, Place], None]:
    def store(total: tirx.Expr, at: Place) -> None:
        T.buffer_store(out, (total * tirx.const(scale, SUMS)).astype(out.dtype), list(at))

    return store


def _written(weighted: Weighted, traits: GpuTraits, choices: Choices) -> tirx.Stmt:
    """Return the loops in tiles: the decision ``tile``. By default the first that leaves no core idle."""
    width = int(weighted.width.extent)
    if width > WIDEST:
        raise Unsuited("the heads are too wide for registers")
    if sums_of(str(weighted.values.ty.dtype)) != SUMS:
        raise Unsuited("the sums are not float32")
    batch = math.prod(int(axis.extent) for axis in weighted.batch)
    terms = [int(each.terms.extent) for each in weighted.products]

    def is_busy(tile: WeightTile) -> bool:
        blocks = batch * math.ceil(int(weighted.rows.extent) / tile.rows)
        return blocks >= BLOCKS * traits.cores

    def choose(able: Sequence[AnyTile]) -> AnyTile:
        named = {astuple(tile): tile for tile in able if tile.threads <= traits.threads}
        default = next((name for name, tile in named.items() if is_busy(tile)), list(named)[-1])
        return named[choices.choose("tile", list(named), default)]

    if traits.matrix_units and multiplies(weighted):
        strips = [tile for tile in STRIPS if tile.shared_bytes(terms, width) <= traits.shared_bytes]
        if strips:
            return written(weighted, choose(strips), WarpBlock)
    tiles = [tile for tile in TILES if tile.shared_bytes(width) <= traits.shared_bytes]
    if not tiles:
        raise Unsuited("no tile fits into shared memory")
    return written(weighted, choose(tiles), ThreadBlock)


BLOCKS = 2
"""Blocks of a core, at least, with which it hides latencies."""
