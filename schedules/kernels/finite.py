"""Checks that all numbers of a tensor are finite, and that no product of two overflows, as C functions of addresses."""

from __future__ import annotations

from typing import NamedTuple

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T


class Bits(NamedTuple):
    """Bits of a floating-point type: the integer type as wide, and the exponent's bits, all set."""

    dtype: str
    exponent: int


BITS = {
    "float16": Bits("int16", 0x7C00),
    "bfloat16": Bits("int16", 0x7F80),
    "float32": Bits("int32", 0x7F800000),
    "float64": Bits("int64", 0x7FF0000000000000),
}
LANES = 32
"""Elements of a vector operation. LLVM splits it: several short vectors hide the latency of their maxima."""
BLOCK = 64 * 1024
"""Most elements that one core checks at a time. Two of 256 KB (float32) take about as long as waking the other cores:
below that, and so for most gradients, a check runs on one core."""
PARTS = 64
"""Parts of a large tensor, of which each has a largest magnitude."""
ALL_FACTORS = "pock_all_factors"
CPU = 1
"""TVM's type of the device whose stack holds the buffers."""


def symbol(dtype: str) -> str:
    """Return the name of :func:`all_finite` for a dtype."""
    return f"pock_all_finite_{dtype}"


def all_finite(dtype: str) -> tirx.PrimFunc:
    """Build ``int32 pock_all_finite_<dtype>(const <dtype> *numbers, int64 count, int64 *found, int64 mark)``.

    It writes the mark to ``found`` if a number is infinite or NaN. Like a kernel it returns 0, unless it got no
    threads.

    A number is finite if its exponent is below the largest. The check is on integers: ``x * 0 == 0`` and ``x == x``
    are what simplifiers of floating-point code fold. It comes scheduled, for any count.
    """
    bits, exponent = BITS[dtype]
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(symbol(dtype))
        T.func_attr({"global_symbol": symbol(dtype), "calling_conv": 1})
        T.func_ret(tirx.const(0, "int32").ty)
        pointer, count = T.arg("numbers", T.handle(bits)), T.arg("count", T.int64())
        address, mark = T.arg("found", T.handle("int64")), T.arg("mark", T.int64())
        numbers, found = T.decl_buffer((count,), bits, data=pointer), T.decl_buffer((1,), "int64", data=address)

        def check(first: tirx.Expr, size: tirx.Expr) -> None:
            largest = T.alloc_buffer((1,), bits)
            _store_largest(numbers, first, size, largest, 0)
            with T.If(largest[0] >= tirx.const(exponent, bits)), T.Then():
                T.buffer_store(found, mark, [0])  # of several cores all write the same

        with T.attr("default", "device_type", CPU), T.attr("default", "device_id", 0):
            with T.If(count <= 2 * BLOCK):
                with T.Then():
                    check(tirx.const(0, "int64"), count)
                with T.Else(), T.parallel((count + BLOCK - 1) // BLOCK) as block:
                    check(block * BLOCK, tirx.min(count - block * BLOCK, BLOCK))
        T.Return(tirx.const(0, "int32"))
    return builder.get()


def all_factors() -> tirx.PrimFunc:
    """Build ``int32 pock_all_factors(const float *a, int64 count_a, const float *b, int64 count_b, int64 *found,
    int64 mark)``.

    It writes the mark to ``found`` if a number is infinite or NaN, or if a sum of products of numbers of ``a`` and
    ``b`` may overflow: if the product of their largest magnitudes, times the smaller count, reaches 2^127. Like a
    kernel it returns 0, unless it got no threads.
    """
    bits, infinity = BITS["float32"]
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(ALL_FACTORS)
        T.func_attr({"global_symbol": ALL_FACTORS, "calling_conv": 1})
        T.func_ret(tirx.const(0, "int32").ty)
        operands = [(T.arg(name, T.handle(bits)), T.arg(f"count_{name}", T.int64())) for name in ("a", "b")]
        address, mark = T.arg("found", T.handle("int64")), T.arg("mark", T.int64())
        found = T.decl_buffer((1,), "int64", data=address)
        with T.attr("default", "device_type", CPU), T.attr("default", "device_id", 0):
            largest = []
            for pointer, count in operands:
                numbers, parts = T.decl_buffer((count,), bits, data=pointer), T.alloc_buffer((PARTS,), bits)
                with T.serial(PARTS) as part:
                    T.buffer_store(parts, tirx.const(0, bits), [part])
                with T.If(count <= 2 * BLOCK):
                    with T.Then():
                        _store_largest(numbers, tirx.const(0, "int64"), count, parts, 0)
                    with T.Else(), T.parallel(PARTS) as part:
                        first = tirx.Cast("int64", part) * ((count + PARTS - 1) // PARTS)
                        size = tirx.max(0, tirx.min(count - first, (count + PARTS - 1) // PARTS))
                        _store_largest(numbers, first, size, parts, part)
                with T.serial(PARTS) as part:
                    T.buffer_store(parts, tirx.max(parts[0], parts[part]), [0])
                largest.append(parts)
            a, b = (tirx.Cast("float64", tirx.reinterpret("float32", each[0])) for each in largest)
            terms = tirx.Cast("float64", tirx.min(*(count for _, count in operands)))
            is_finite = tirx.max(largest[0][0], largest[1][0]) < tirx.const(infinity, bits)
            with T.If(tirx.Not(tirx.all(is_finite, a * b * terms < tirx.const(2.0**127, "float64")))), T.Then():
                T.buffer_store(found, mark, [0])
        T.Return(tirx.const(0, "int32"))
    return builder.get()


def _store_largest(
    numbers: tirx.Buffer, first: tirx.Expr, size: tirx.Expr, largest: tirx.Buffer, at: tirx.Expr | int
) -> None:
    """Emit the largest magnitude of ``size`` numbers from ``first`` on, all read as integers."""
    bits = str(numbers.ty.dtype)
    mask = tirx.const((1 << (int(bits[3:]) - 1)) - 1, bits)  # all but the sign
    zero, lanes = tirx.const(0, bits), T.alloc_buffer((LANES,), bits)
    with T.vectorized(LANES) as lane:
        T.buffer_store(lanes, zero, [lane])
    with T.serial(size // LANES) as vector, T.vectorized(LANES) as lane:
        magnitude = numbers[first + vector * LANES + lane] & mask
        T.buffer_store(lanes, tirx.max(lanes[lane], magnitude), [lane])
    T.buffer_store(largest, zero, [at])
    with T.serial(size % LANES) as rest:
        magnitude = numbers[first + size // LANES * LANES + rest] & mask
        T.buffer_store(largest, tirx.max(largest[at], magnitude), [at])
    with T.serial(LANES) as lane:
        T.buffer_store(largest, tirx.max(largest[at], lanes[lane]), [at])
