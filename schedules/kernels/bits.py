"""Booleans packed as bits.

The bits of a byte are strided along one axis: adjacent bytes are packed and unpacked as whole vectors.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from tvm import te, tirx

BITS = 8


def packed_shape(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    """Return the shape of the bytes for booleans of ``shape``, packed along ``axis``."""
    return (*shape[:axis], math.ceil(shape[axis] / BITS), *shape[axis + 1 :])


def pack_bits(x: te.Tensor, *, axis: int) -> te.Tensor:
    """Pack bool into uint8, an eighth as long along ``axis``: bit b of byte j is ``x[j + b * bytes]``."""
    extent = int(x.shape[axis])
    shape = packed_shape([int(d) for d in x.shape], axis)
    count = shape[axis]

    def packed(*index: tirx.Var) -> tirx.Expr:
        found = []
        for bit in range(math.ceil(extent / count)):
            at = index[axis] + bit * count
            one, none = tirx.const(1 << bit, "uint8"), tirx.const(0, "uint8")
            value = tirx.Select(x(*index[:axis], tirx.min(at, extent - 1), *index[axis + 1 :]), one, none)
            found.append(value if (bit + 1) * count <= extent else tirx.Select(at < extent, value, none))
        return functools.reduce(tirx.bitwise_or, found)

    return te.compute(shape, packed, name="pack_bits")


def unpack_bits(bits: te.Tensor, *, axis: int, extent: int) -> te.Tensor:
    """Undo :func:`pack_bits`: uint8 to bool, of ``extent`` along ``axis``."""
    count = int(bits.shape[axis])

    def unpacked(*index: tirx.Var) -> tirx.Expr:
        byte = bits(*index[:axis], tirx.indexmod(index[axis], count), *index[axis + 1 :])
        # Signed: beside padding, an index that is never read may be -1, and TVM makes no unsigned constant of that.
        shifted = tirx.shift_right(byte.astype("int8"), tirx.indexdiv(index[axis], count).astype("int8"))
        return tirx.bitwise_and(shifted, tirx.const(1, "int8")) != tirx.const(0, "int8")

    return te.compute((*bits.shape[:axis], extent, *bits.shape[axis + 1 :]), unpacked, name="unpack_bits")
