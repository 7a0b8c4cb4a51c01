"""Matrix products, convolutions (implicit GEMM) and their gradients, in tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import s_tir, tirx
from tvm.s_tir.schedule import SBlockRV
from tvm.sym import Analyzer

from ..decisions import Choices
from .contraction import Axis, contraction_of, extents_of, flat, loads_of
from .emit import VECTOR, reads_along
from .tiled import Tiled
from .tiles import Problem, choose_tile
from .traits import GpuTraits


def product(sch: s_tir.Schedule, block: SBlockRV, traits: GpuTraits, choices: Choices) -> tirx.PrimFunc:
    """Write a product anew, in tiles.

    Decisions: ``tile``: rows, columns and terms of a block, rows and columns of a thread. ``splits``: blocks that share
    a sum. Each then leaves its part in scratch, and another launch adds them, in order.
    """
    func = sch.mod["main"]
    contraction = contraction_of(sch, block)
    terms = flat(contraction.reduced)
    most = terms if isinstance(terms, int) else int(Analyzer().const_int_bound(terms).max_value)
    factors = ((contraction.left, contraction.rows), (contraction.right, contraction.columns))
    lanes = [max(_lanes(value, axes), _lanes(value, contraction.reduced)) for value, axes in factors]
    scratch = sum(_elements(value) for value, _ in factors) if isinstance(terms, int) else 0
    problem = Problem(*extents_of(contraction), most, (lanes[0], lanes[1]), scratch)
    tile, splits = choose_tile(problem, traits, choices)
    return func.with_body(Tiled(contraction, tile, splits).written())


def _lanes(value: tirx.Expr, axes: Sequence[Axis]) -> int:
    """Return the elements of a load of a factor along some axes."""
    return math.gcd(VECTOR, int(axes[-1].extent)) if reads_along(value, axes) else 1


def _elements(value: tirx.Expr) -> int:
    """Return the elements of what a factor reads first. Parts of sums are to take no more memory than the factors."""
    return next((math.prod(int(extent) for extent in load.source.shape) for load in loads_of(value)), 0)
