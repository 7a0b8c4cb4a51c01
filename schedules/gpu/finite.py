"""Check that all numbers of a tensor are finite, as a kernel for a GPU."""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from ..kernels.finite import BITS, symbol

THREADS = 4096
"""Threads that share the numbers."""


def all_finite(dtype: str) -> tirx.PrimFunc:
    """Build the kernel ``pock_all_finite_<dtype>`` of three operands.

    ``numbers``: of the dtype. ``check``: int32 [2], how many numbers there are, and a mark. ``found``: int32 [1]; the
    mark is written there if a number is infinite or NaN, unless an earlier check has failed.

    A number is finite if its exponent is below the largest (:mod:`schedules.kernels.finite`).
    """
    bits, exponent = BITS[dtype]
    mask = tirx.const((1 << (int(bits[3:]) - 1)) - 1, bits)  # all but the sign
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(symbol(dtype))
        T.func_attr({"global_symbol": symbol(dtype), "tirx.is_scheduled": True})
        numbers = T.arg("numbers", T.Buffer((T.int64(),), bits))
        check = T.arg("check", T.Buffer((2,), "int32"))
        found = T.arg("found", T.Buffer((1,), "int32"))
        with T.parallel(THREADS) as thread, T.serial((check[0] + THREADS - 1) // THREADS) as step:
            place = step * THREADS + thread
            with T.If(place < check[0]), T.Then():
                is_first = tirx.all((numbers[place] & mask) >= tirx.const(exponent, bits), found[0] == 0)
                with T.If(is_first), T.Then():
                    T.buffer_store(found, check[1], [0])
    return builder.get()
