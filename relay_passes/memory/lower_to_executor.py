"""Lowers a call list to a host function."""

from __future__ import annotations

import contextlib
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

    Kernels are C functions of pointers. The first that fails ends the run, and so does a check that finds a number that
    is not finite: the message then ends with the check's position in the list.
    """
    checks = any(isinstance(call, Check) for call in calls.calls)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("executor")
        addresses = T.arg("addresses", T.Buffer((len(calls.table) + 1,), "int64"))

        def pointer(place: Place) -> tirx.Expr:
            start = T.reinterpret("handle", addresses[place.position])
            return T.handle_add_byte_offset(start, place.offset) if place.offset else start

        with contextlib.ExitStack() as scopes:
            if checks:  # TVM asks of whoever allocates on which device, though the flag lies on the stack
                for key, value in (("device_type", DEVICE_TYPE_CPU), ("device_id", 0)):
                    scopes.enter_context(T.attr("default", key, value))
                flag = T.alloc_buffer((1,), "int32")
                T.buffer_store(flag, 0, [0])
            for position, call in enumerate(calls.calls):
                if isinstance(call, Copy):
                    T.evaluate(T.call_extern("handle", "memcpy", pointer(call.to), pointer(call.source), call.size))
                elif isinstance(call, Check):
                    emit_call(finite.symbol(call.dtype), [pointer(call.place), T.int64(call.count), flag.data])
                    with T.Assert(flag[0] == 0, [NOT_FINITE, str(position)]):
                        pass
                else:
                    emit_call(call.kernel, [pointer(place) for place in call.operands])
    return builder.get()


def emit_call(kernel: str, operands: Sequence[tirx.Expr]) -> None:
    """Emit the call of a kernel, a C function of pointers, and an assertion that it returns 0."""
    with T.Assert(T.call_extern("int32", kernel, *operands) == 0, NO_THREADS):
        pass


DEVICE_TYPE_CPU = 1
NOT_FINITE = "not finite: "
"""Error of a check, before its position in the call list."""
NO_THREADS = "a kernel got no threads to run on"
"""Error of a failing kernel: nothing else makes one fail. One text for all calls keeps executors small."""
