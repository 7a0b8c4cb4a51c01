"""Turns a planned function into one that does nothing but call kernels on fixed addresses."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from ..analysis.aliasing import Aliasing, Output
from ..canonical.split_batch import CUT
from ..errors import PassError
from ..ir import CALLS, Constant, Expr, bindings_of, op_name, type_bytes, update_function


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

    ``before`` names functions, planned too, whose calls come first. Each of them, and this one at last, then takes the
    next part of the inputs that ``cut_inputs`` names (:class:`SplitBatch`), and writes the next row of each result.
    """

    function: str = "main"
    first_results: int | None = None
    before: Sequence[str] = ()

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        names, constants = (*self.before, self.function), list[Expr]()
        for name in names:
            if "arena_offsets" not in mod[name].attrs:
                raise PassError(f"function '{name}' has no plan: run relay_passes.PlanArena first")
        parts = {name: _Part(mod[name], self.first_results, constants) for name in dict.fromkeys(names)}
        executor = _executor([parts[name] for name in names], constants)
        return update_function(mod, self.function, executor.with_attr("global_symbol", self.function))


Place = tuple[str, int]
"""Where something lies: a name in the table, and an offset in bytes."""


class _Part:
    """The calls of one planned function, and what they are made on."""

    def __init__(self, func: relax.Function, first_results: int | None, constants: list[Expr]) -> None:
        self.func = func
        self.aliasing = Aliasing(func)
        self.results = self.aliasing.results[:first_results]
        self.written: dict[Output, int] = {}
        """The results that a kernel writes where the caller wants them; the others are copied there."""
        for index, result in enumerate(self.results):
            for output in self.aliasing.buffers(result)[:1]:
                self.written.setdefault(output, index)
        self.bindings = bindings_of(func)
        self.offsets: dict[Output, int] = {}
        for binding, offsets in zip(self.bindings, func.attrs["arena_offsets"], strict=True):
            for output, offset in zip(self.aliasing.outputs(binding), offsets, strict=True):
                home, inside = self.aliasing.buffer_of(output)
                self.offsets[home] = int(offset) - inside
        self.constants = constants
        self.calls = [self._call(binding) for binding in self.bindings if op_name(binding.value) in CALLS]
        self.copies = [
            (f"result.{index}", self._place(result), type_bytes(result.ty))
            for index, result in enumerate(self.results)
            if index not in self.written.values()
        ]
        # Bindings that call nothing (views) take no step.
        step = list(itertools.accumulate(op_name(binding.value) in CALLS for binding in self.bindings))
        self.arena_map = [[*what, step[first] - 1, step[last] - 1] for *what, first, last in func.attrs["arena_map"]]

    def types(self) -> dict[str, relax.TensorType]:
        """What parameters and results hold."""
        return {param.name: param.ty for param in self.func.params} | {
            f"result.{index}": result.ty for index, result in enumerate(self.results)
        }

    def _call(self, binding: relax.VarBinding) -> tuple[str, list[Place]]:
        """The name of a kernel and where its arguments lie."""
        kernel, args = binding.value.args[0], list(binding.value.args[1].fields)
        places = [self._place(arg) for arg in args]
        places += [self._in_memory(*self.aliasing.buffer_of(output)) for output in self.aliasing.outputs(binding)]
        return kernel.name_hint, places

    def _place(self, expr: Expr) -> Place:
        outputs, offset = self.aliasing.buffers(expr), self.aliasing.offset(expr)
        if outputs:
            return self._in_memory(outputs[0], offset)
        origin = self.aliasing.origin(expr)
        if isinstance(origin, Constant):
            self.constants.append(origin)
            return f"constant.{len(self.constants) - 1}", offset
        return origin.name, offset

    def _in_memory(self, home: Output, offset: int) -> Place:
        """The place so many bytes into the memory of a temporary or of a result."""
        if home in self.written:
            return f"result.{self.written[home]}", offset
        return "arena", self.offsets[home] + offset


def _executor(parts: Sequence[_Part], constants: Sequence[Expr]) -> tirx.PrimFunc:
    """The function that makes the calls of all parts, one part of the batch after the other."""
    whole = parts[-1]
    types = dict(item for part in parts for item in part.types().items())
    types |= {f"constant.{index}": constant.ty for index, constant in enumerate(constants)}
    rows = set(whole.func.attrs.get(CUT, ())) | {name for name in types if name.startswith("result.")}

    def moved(place: Place, number: int) -> Place:
        name, offset = place
        return name, offset + (number * type_bytes(types[name]) if name in rows else 0)

    steps: list[tuple[str, list[Place], int | None]] = []  # what is called on what; of a copy its size
    calls: list[tuple[str, list[Place]]] = []
    arena_map = []
    for number, part in enumerate(parts):
        arena_map += [[*what, first + len(calls), last + len(calls)] for *what, first, last in part.arena_map]
        own = [(kernel, [moved(place, number) for place in places]) for kernel, places in part.calls]
        calls += own
        steps += [(kernel, places, None) for kernel, places in own]
        steps += [("memcpy", [moved((to, 0), number), moved(place, number)], size) for to, place, size in part.copies]
    used = {name for _, places, _ in steps for name, _ in places}
    table = [name for name in types if name in used and not name.startswith(("constant.", "result."))]
    table += [name for kind in ("constant.", "result.") for name in types if name.startswith(kind)]
    position = {name: index for index, name in enumerate([*table, "arena"])}
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("executor")
        addresses = T.arg("addresses", T.Buffer((len(position),), "int64"))

        def pointer(name: str, offset: int) -> tirx.Expr:
            start = T.reinterpret("handle", addresses[position[name]])
            return T.handle_add_byte_offset(start, offset) if offset else start

        for kernel, places, size in steps:
            pointers = [pointer(*place) for place in places]
            T.evaluate(
                T.call_extern("int32", kernel, *pointers)
                if size is None
                else T.call_extern("handle", kernel, *pointers, size)
            )
    count = len(parts)
    return builder.get().with_attrs(
        {
            "table": [[name, *_described(types[name], count if name in rows else 1)] for name in table],
            "calls": [[kernel, [[position[place], offset] for place, offset in places]] for kernel, places in calls],
            "arena_map": arena_map,
            "constants": [constant.value for constant in constants],
            **{name: max(int(p.func.attrs[name]) for p in parts) for name in ("arena_bytes", "arena_lower_bound")},
        }
    )


def _described(ty: relax.TensorType, count: int) -> tuple[list[int], str]:
    """Shape and element type of what lies at an address: of ``count`` parts, behind one another."""
    shape = [int(extent) for extent in ty.shape]
    if count > 1:
        shape = [count * shape[0], *shape[1:]] if shape else [count]
    return shape, str(ty.dtype.dtype)
