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
from .traits import CpuTraits


def transpose(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, choices: Choices) -> tirx.PrimFunc:
    """Write a transpose anew, by shuffles: TVM's schedule primitives have none.

    Decisions: ``lanes``.
    """
    stmt = sch.get(block)
    source, axes = stmt.reads[0].source, [int(axis) for axis in stmt.annotations["axes"]]
    shape, dtype = [int(extent) for extent in source.ty.shape], str(source.ty.dtype)
    offered = square_lanes(shape, axes, traits)
    if not offered or dtype != "float32":
        raise Unsuited("no square of vectors fits")
    return _shuffled(shape, axes, dtype, choices.choose("lanes", offered, offered[0]))


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


def _shuffled(shape: Sequence[int], axes: Sequence[int], dtype: str, lanes: int) -> tirx.PrimFunc:
    """Build ``Y = X.transpose(axes)`` where the last axis moves; X has the ``shape``."""
    rank, row_axis = len(shape), axes[-1]
    result = [shape[axis] for axis in axes]
    x_strides, y_strides = _strides(shape), dict(zip(axes, _strides(result), strict=True))  # in the axis order of X
    counts = [-(-extent // lanes) if axis in (row_axis, rank - 1) else extent for axis, extent in enumerate(shape)]

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
            with T.parallel(math.prod(counts[:-1])) as task, T.serial(counts[-1]) as column:
                places = [start(place, axis) for axis, place in enumerate([*unravelled(task, counts[:-1]), column])]
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
