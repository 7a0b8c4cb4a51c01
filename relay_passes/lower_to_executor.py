"""Turns a planned function into one that does nothing but call kernels on fixed addresses."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from .errors import PassError
from .ir import CALLS, Constant, Expr, bindings_of, op_name, type_bytes, update_function
from .plan_arena import Memory, Output


@tvm.transform.module_pass(opt_level=0, name="LowerToExecutor")
@dataclass(frozen=True)
class LowerToExecutor:
    """Replace a planned Relax function by a host function that is a plain list of kernel calls.

    In: what :class:`PlanArena` gives; every kernel is a PrimFunc of the module, under a name of its own as a symbol
    (:class:`NameKernels`: one named ``exp`` would be the C library's). Out: a PrimFunc of the same name that
    takes one int64 vector of addresses, and calls each kernel as a C function of pointers. Nothing else happens at run
    time: no allocation, no dispatch, no checks.

    The attribute ``table`` gives name, shape and element type behind each address: the parameters that are read, the
    constants (``constant.<i>``) and the results (``result.<i>``); the last address, which it leaves out, is that of the
    arena. ``calls`` gives each kernel with its arguments as (position in the table, offset in bytes), ``arena_map``
    what :class:`PlanArena` gives, by calls instead of bindings. ``constants`` holds the constants. ``first_results``
    limits the results to the first so many: the rest (what was updated in place) the caller has already.
    """

    function: str = "main"
    first_results: int | None = None

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        if "arena_offsets" not in func.attrs:
            raise PassError(f"function '{self.function}' has no plan: run relay_passes.PlanArena first")
        executor = _Executor(func, self.first_results).build()
        return update_function(mod, self.function, executor.with_attr("global_symbol", self.function))


class _Executor:
    def __init__(self, func: relax.Function, first_results: int | None) -> None:
        self.func = func
        self.memory = Memory(func)
        self.results = self.memory.results[:first_results]
        self.written: dict[Output, int] = {}
        """The results that a kernel writes where the caller wants them; the others are copied there."""
        for index, result in enumerate(self.results):
            for output in self.memory.named_by(result)[:1]:
                self.written.setdefault(output, index)
        self.bindings = bindings_of(func)
        self.offsets: dict[Output, int] = {}
        for binding, offsets in zip(self.bindings, func.attrs["arena_offsets"], strict=True):
            for output, offset in zip(self.memory.outputs(binding), offsets, strict=True):
                home, inside = self.memory.home(output)
                self.offsets[home] = int(offset) - inside
        self.constants: list[Expr] = []

    def build(self) -> tirx.PrimFunc:
        calls = [self._call(binding) for binding in self.bindings if op_name(binding.value) in CALLS]
        copies = [
            (index, self._place(result), type_bytes(result.ty))
            for index, result in enumerate(self.results)
            if index not in self.written.values()
        ]
        used = {name for _, places in calls for name, _ in places} | {place[0] for _, place, _ in copies}
        table = [param.name for param in self.func.params if param.name in used]
        table += [f"constant.{index}" for index in range(len(self.constants))]
        table += [f"result.{index}" for index in range(len(self.results))] + ["arena"]
        position = {name: index for index, name in enumerate(table)}
        types = {param.name: param.ty for param in self.func.params}
        types |= {f"constant.{index}": constant.ty for index, constant in enumerate(self.constants)}
        types |= {f"result.{index}": result.ty for index, result in enumerate(self.results)}
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("executor")
            addresses = T.arg("addresses", T.Buffer((len(table),), "int64"))

            def pointer(name: str, offset: int) -> tirx.Expr:
                start = T.reinterpret("handle", addresses[position[name]])
                return T.handle_add_byte_offset(start, offset) if offset else start

            for kernel, places in calls:
                T.evaluate(T.call_extern("int32", kernel, *(pointer(*place) for place in places)))
            for index, place, size in copies:
                T.evaluate(T.call_extern("handle", "memcpy", pointer(f"result.{index}", 0), pointer(*place), size))
        sizes = {name: int(self.func.attrs[name]) for name in ("arena_bytes", "arena_lower_bound")}
        # Bindings that call nothing (views) take no step.
        step = list(itertools.accumulate(op_name(binding.value) in CALLS for binding in self.bindings))
        arena_map = [[*what, step[first] - 1, step[last] - 1] for *what, first, last in self.func.attrs["arena_map"]]
        described = [[name, *_described(types[name])] for name in table if name != "arena"]
        positions = [[kernel, [[position[place], offset] for place, offset in places]] for kernel, places in calls]
        return builder.get().with_attrs(
            {
                "table": described,
                "calls": positions,
                "arena_map": arena_map,
                "constants": [constant.value for constant in self.constants],
                **sizes,
            }
        )

    def _call(self, binding: relax.VarBinding) -> tuple[str, list[tuple[str, int]]]:
        """The name of a kernel and where its arguments lie: (name in the table, offset in bytes)."""
        kernel, args = binding.value.args[0], list(binding.value.args[1].fields)
        places = [self._place(arg) for arg in args]
        places += [self._in_memory(*self.memory.home(output)) for output in self.memory.outputs(binding)]
        return kernel.name_hint, places

    def _place(self, expr: Expr) -> tuple[str, int]:
        outputs, offset = self.memory.named_by(expr), self.memory.offset(expr)
        if outputs:
            return self._in_memory(outputs[0], offset)
        origin = self.memory.origin(expr)
        if isinstance(origin, Constant):
            self.constants.append(origin)
            return f"constant.{len(self.constants) - 1}", offset
        return origin.name, offset

    def _in_memory(self, home: Output, offset: int) -> tuple[str, int]:
        """The place so many bytes into the memory of a temporary or of a result."""
        if home in self.written:
            return f"result.{self.written[home]}", offset
        return "arena", self.offsets[home] + offset


def _described(ty: relax.TensorType) -> tuple[list[int], str]:
    return [int(extent) for extent in ty.shape], str(ty.dtype.dtype)
