"""Lowers a call list to a host function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tvm
from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from schedules.kernels import finite

from ..ir import update_function
from .call_list import CallList, Check, Copy, Place, attached, call_list_of


@tvm.transform.module_pass(opt_level=0, name="LowerToExecutor")
@dataclass(frozen=True)
class LowerToExecutor:
    """Replace a planned Relax function by a host function that is a plain list of kernel calls.

    In: a function with the call list of :class:`ListCalls`. Every kernel is a PrimFunc of the module with a unique
    symbol (:class:`NameKernels`: a symbol ``exp`` would clash with the C library). Out: a PrimFunc of the same name and
    call list. At run time it calls kernels and checks their return codes: no allocation, no dispatch.
    """

    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        calls = call_list_of(mod[self.function])
        func = attached(executor(calls), calls).with_attr("global_symbol", self.function)
        return update_function(mod, self.function, func)


def executor(calls: CallList) -> tirx.PrimFunc:
    """Build a function that takes one int64 vector of addresses, the table's and then the arena's, and makes the calls.

    Kernels are C functions of pointers. The first that fails ends the run. If the list holds checks, the vector has one
    more element: the first check that fails ends the run, and leaves its position in the list there, counted from 1.
    """
    found = len(calls.table) + 1
    checked = any(isinstance(call, Check) for call in calls.calls)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("executor")
        addresses = T.arg("addresses", T.Buffer((found + checked,), "int64"))

        def pointer(place: Place) -> tirx.Expr:
            start = T.reinterpret("handle", addresses[place.position])
            return T.handle_add_byte_offset(start, place.offset) if place.offset else start

        if checked:
            T.buffer_store(addresses, T.int64(0), [found])
        for number, call in enumerate(calls.calls, 1):
            if isinstance(call, Copy):
                T.evaluate(T.call_extern("handle", "memcpy", pointer(call.to), pointer(call.source), call.size))
            elif isinstance(call, Check):
                numbers = [pointer(call.place), T.int64(call.count)]
                function, mark = finite.symbol(call.dtype), [T.address_of(addresses[found]), T.int64(number)]
                if call.other is not None:
                    other, count = call.other
                    function, numbers = finite.ALL_FACTORS, [*numbers, pointer(other), T.int64(count)]
                emit_call(function, [*numbers, *mark])
                with T.Assert(addresses[found] == 0, NOT_FINITE):
                    pass
            else:
                emit_call(call.kernel, [pointer(place) for place in call.operands])
    return builder.get()


def emit_call(kernel: str, operands: Sequence[tirx.Expr]) -> None:
    """Emit the call of a kernel, a C function of pointers, and an assertion that it returns 0."""
    with T.Assert(T.call_extern("int32", kernel, *operands) == 0, NO_THREADS):
        pass


NOT_FINITE = "a number is not finite"
"""Error of a check. One text for all keeps executors small, too."""
NO_THREADS = "a kernel got no threads to run on"
"""Error of a failing kernel: nothing else makes one fail. One text for all calls keeps executors small."""
