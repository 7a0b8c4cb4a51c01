"""Check that all numbers of a tensor are finite, as a C function of an address and a count."""

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
    mask = tirx.const((1 << (int(bits[3:]) - 1)) - 1, bits)  # all but the sign
    zero = tirx.const(0, bits)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(symbol(dtype))
        T.func_attr({"global_symbol": symbol(dtype), "calling_conv": 1})
        T.func_ret(tirx.const(0, "int32").ty)
        pointer, count = T.arg("numbers", T.handle(bits)), T.arg("count", T.int64())
        address, mark = T.arg("found", T.handle("int64")), T.arg("mark", T.int64())
        numbers, found = T.decl_buffer((count,), bits, data=pointer), T.decl_buffer((1,), "int64", data=address)

        def check(first: tirx.Expr, size: tirx.Expr) -> None:
            """Check ``size`` numbers from ``first`` on: the largest of their magnitudes, read as integers, tells."""
            lanes, largest = T.alloc_buffer((LANES,), bits), T.alloc_buffer((1,), bits)
            with T.vectorized(LANES) as lane:
                T.buffer_store(lanes, zero, [lane])
            with T.serial(size // LANES) as vector, T.vectorized(LANES) as lane:
                magnitude = numbers[first + vector * LANES + lane] & mask
                T.buffer_store(lanes, tirx.max(lanes[lane], magnitude), [lane])
            T.buffer_store(largest, zero, [0])
            with T.serial(size % LANES) as at:
                magnitude = numbers[first + size // LANES * LANES + at] & mask
                T.buffer_store(largest, tirx.max(largest[0], magnitude), [0])
            with T.serial(LANES) as lane:
                T.buffer_store(largest, tirx.max(largest[0], lanes[lane]), [0])
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
