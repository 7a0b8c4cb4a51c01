"""Squares of vectors, which shuffles turn in registers: TVM's schedule primitives have none."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from tvm import s_tir, tirx
from tvm.s_tir import TensorIntrin
from tvm.s_tir.schedule import SBlockRV
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from .traits import CpuTraits

TURNED = "pock.turned"
"""Annotation of a block that turns a matrix in strips (:func:`schedules.kernels.matmul.across_matmul`): their width."""
SQUARES = (16, 8, 4)
"""Sides of square tiles that shuffles transpose."""

TO_SECOND_CACHE = (0, 2, 1)
"""Arguments of llvm.prefetch: for reading, past the first cache, data."""


def squares(traits: CpuTraits) -> list[int]:
    """Return the sides of squares that a CPU's registers hold, largest first."""
    return [n for n in SQUARES if n <= traits.lanes]


def turned(rows: Sequence[tirx.Expr]) -> list[tirx.Expr]:
    """Emit the transpose of a square of as many vectors as each has lanes.

    It takes log2(lanes) steps of shuffles, each of which swaps off-diagonal blocks.
    """
    vectors, lanes, half = list(rows), len(rows), 1
    while half < lanes:
        for n in (n for n in range(lanes) if not n & half):
            pair = [vectors[n], vectors[n + half]]
            lower = [lane if not lane & half else lanes + lane - half for lane in range(lanes)]
            upper = [lanes + lane if lane & half else lane + half for lane in range(lanes)]
            vectors[n], vectors[n + half] = (T.bind(tirx.Shuffle(pair, lower)), T.bind(tirx.Shuffle(pair, upper)))
        half *= 2
    return vectors


def turn_in_squares(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, *, fetches: bool = True) -> None:
    """Schedule a block that turns a matrix in strips, ``Y[.., k, n] = X[.., k // width, n, k % width]``.

    Its last two loops become squares of vectors. Where no square divides both, they stay loops over elements.
    ``fetches``: prefetch the square that lies as many rows further on as the block turns: what the next task will turn.
    """
    width = int(sch.get(block).annotations[TURNED])
    rows, columns = sch.get_loops(block)[-2:]
    extents = [int(sch.get(loop).extent) for loop in (rows, columns)]
    lanes = next((n for n in squares(traits) if not any(extent % n for extent in (*extents, width))), None)
    if lanes is None:
        return
    (row_outer, row), (column_outer, column) = (sch.split(loop, [None, lanes]) for loop in (rows, columns))
    sch.reorder(row_outer, column_outer, row, column)
    sch.tensorize(row, _square(lanes, extents[1] if fetches else 0))


@functools.cache
def _square(lanes: int, ahead: int) -> str:
    """Register the transpose of a square of vectors, and return its name for ``Schedule.tensorize``.

    It prefetches the square that lies ``ahead`` rows further on, unless that is 0.
    """

    def function(fill: Callable[[tirx.Buffer, tirx.Buffer], None]) -> tirx.PrimFunc:
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("square")
            x, y = (T.arg(name, _square_buffer(lanes, f"{name}_stride")) for name in ("x", "y"))
            with T.sblock("root"):
                T.reads(x[0:lanes, 0:lanes])
                T.writes(y[0:lanes, 0:lanes])
                fill(x, y)
        return builder.get()

    def elements(x: tirx.Buffer, y: tirx.Buffer) -> None:
        with T.grid(lanes, lanes) as (row, column), T.sblock("turned"):
            i, j = T.axis.spatial(lanes, row), T.axis.spatial(lanes, column)
            T.reads(x[j, i])
            T.writes(y[i, j])
            T.buffer_store(y, x[j, i], [i, j])

    def vectors(x: tirx.Buffer, y: tirx.Buffer) -> None:
        for n in range(lanes if ahead else 0):
            T.evaluate(tirx.call_intrin("void", "tirx.prefetch", tirx.address_of(x[n + ahead, 0]), *TO_SECOND_CACHE))
        for n, row in enumerate(turned([T.bind(x[n, tirx.Ramp(0, 1, lanes)]) for n in range(lanes)])):
            T.buffer_store(y, row, [n, tirx.Ramp(0, 1, lanes)])

    name = f"pock.turned_{lanes}x{lanes}_{ahead}"
    TensorIntrin.register(name, function(elements), function(vectors), override=True)
    return name


def _square_buffer(lanes: int, stride: str) -> tirx.Buffer:
    """Return a square of float32 within a matrix whose rows are a symbolic ``stride`` apart."""
    return T.Buffer((lanes, lanes), "float32", strides=[tirx.Var(stride, "int32"), 1], offset_factor=1)
