"""Transposes in vector registers: square tiles are loaded as rows and stored as columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import s_tir, tirx
from tvm.s_tir.schedule import SBlockRV
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from ..decisions import Choices
from ..loops import Unsuited
from .emit import unravelled
from .squares import squares, turned
from .tile import is_balanced
from .traits import CpuTraits

SQUARES_ABREAST = (4, 2, 1)
"""Squares that a task writes side by side, best first. From measurements of weights on Zen 5: two are 1.02 to 1.4 times
as fast as one; four 1.3 to 1.5 times where rows of the result begin in few sets of a cache, and else 0.9 times."""
SHARED_SETS = 1024
"""Bytes between rows that share a quarter of the sets of a first cache, or fewer."""


def transpose(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, choices: Choices) -> tirx.PrimFunc:
    """Write a transpose anew, by shuffles: TVM's schedule primitives have none.

    A task turns a few strips of X together, so that it writes several adjacent lines of each row of Y.

    Decisions: ``lanes`` and ``abreast``, the strips of a task.
    """
    stmt = sch.get(block)
    source, axes = stmt.reads[0].source, [int(axis) for axis in stmt.annotations["axes"]]
    shape, dtype = [int(extent) for extent in source.ty.shape], str(source.ty.dtype)
    offered = square_lanes(shape, axes, traits)
    if not offered or dtype != "float32":
        raise Unsuited("no square of vectors fits")
    lanes = choices.choose("lanes", offered, offered[0])
    counts = _counts(shape, axes, lanes)
    strips, tasks = counts[axes[-1]], math.prod(counts[:-1])
    most = 4 if 4 * shape[axes[-1]] % SHARED_SETS == 0 else 2
    suited = [n for n in SQUARES_ABREAST if n <= most and is_balanced(tasks // n, traits)]
    divide = [n for n in SQUARES_ABREAST if strips % n == 0]
    abreast = choices.choose("abreast", divide, next((n for n in suited if n in divide), 1))
    return _shuffled(shape, axes, dtype, lanes, abreast)


def square_lanes(shape: Sequence[int], axes: Sequence[int], traits: CpuTraits) -> list[int]:
    """Return the sides that a transpose's square tiles may have, best first; none where the last axis stays.

    Where a side does not divide an extent, the last square overlaps the one before it.
    """
    if axes[-1] == len(shape) - 1:
        return []
    moved = (shape[-1], shape[axes[-1]])

    def cost(lanes: int) -> float:
        """Count loads, stores and shuffles."""
        return math.prod(math.ceil(extent / lanes) for extent in moved) * lanes * (2 + math.log2(lanes))

    return sorted((n for n in squares(traits) if n <= min(moved)), key=cost)


def _counts(shape: Sequence[int], axes: Sequence[int], lanes: int) -> list[int]:
    """Return the squares along the two axes that become rows and columns of Y, and the extents of the others."""
    moved = (axes[-1], len(shape) - 1)
    return [-(-extent // lanes) if axis in moved else extent for axis, extent in enumerate(shape)]


def _shuffled(shape: Sequence[int], axes: Sequence[int], dtype: str, lanes: int, abreast: int) -> tirx.PrimFunc:
    """Build ``Y = X.transpose(axes)`` where the last axis moves; X has the ``shape``."""
    rank, row_axis = len(shape), axes[-1]
    result = [shape[axis] for axis in axes]
    x_strides, y_strides = _strides(shape), dict(zip(axes, _strides(result), strict=True))  # in the axis order of X
    counts = _counts(shape, axes, lanes)
    tasks = [count // abreast if axis == row_axis else count for axis, count in enumerate(counts[:-1])]

    def start(place: tirx.Expr, axis: int) -> tirx.Expr:
        """Return where a square starts: the last one ends with the axis."""
        if axis not in (row_axis, rank - 1):
            return place
        return place * lanes if shape[axis] % lanes == 0 else tirx.min(place * lanes, shape[axis] - lanes)

    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_name("transpose")
        T.func_attr({"tirx.noalias": True})
        x = T.arg("x", T.Buffer([tirx.IntImm("int64", extent) for extent in shape], dtype))
        y = T.arg("y", T.Buffer([tirx.IntImm("int64", extent) for extent in result], dtype))
        with T.sblock("root"):
            flat_x = T.decl_buffer((math.prod(shape),), dtype, data=x.data)
            flat_y = T.decl_buffer((math.prod(shape),), dtype, data=y.data)
            with T.parallel(math.prod(tasks)) as task, T.serial(counts[-1]) as column, T.serial(abreast) as strip:
                squares_at = [*unravelled(task, tasks), column]
                squares_at[row_axis] = squares_at[row_axis] * abreast + strip
                places = [start(place, axis) for axis, place in enumerate(squares_at)]
                x_start = _dot(places, x_strides)
                y_start = _dot(places, [y_strides[axis] for axis in range(rank)])
                rows = [T.bind(flat_x[tirx.Ramp(x_start + n * x_strides[row_axis], 1, lanes)]) for n in range(lanes)]
                for n, row in enumerate(turned(rows)):
                    T.buffer_store(flat_y, row, [tirx.Ramp(y_start + n * y_strides[rank - 1], 1, lanes)])
    return builder.get()


def _strides(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _dot(places: Sequence[tirx.Expr], strides: Sequence[int]) -> tirx.Expr:
    total: tirx.Expr = tirx.const(0, "int32")
    for place, stride in zip(places, strides, strict=True):
        total = total + place * stride
    return total
