"""Builds the call list of a planned function."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax

from ..analysis.aliasing import Aliasing, Buffer
from ..canonical.split_batch import CUT
from ..errors import PassError
from ..ir import CALLS, Constant, Expr, op_name, type_bytes, update_function
from .call_list import CallList, Copy, KernelCall, Place, Region, Tensor, Workspace, attached

ARENA = "arena"


@tvm.transform.module_pass(opt_level=0, name="ListCalls")
@dataclass(frozen=True)
class ListCalls:
    """Attach its :class:`CallList` to a planned function.

    In: a function planned by :class:`PlanArena`. Out: the same function with its call list, for :func:`call_list_of`
    and :class:`LowerToExecutor`. ``first_results`` limits the number of results; the caller already holds the others,
    which are updated in place.

    ``before`` names planned functions whose calls come first. Each of them, and then this one, takes the next part of
    the inputs in ``cut_inputs`` (:class:`SplitBatch`), and writes the next row of each result.
    """

    function: str = "main"
    first_results: int | None = None
    before: Sequence[str] = ()

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        names, constants = (*self.before, self.function), dict[str, Constant]()
        for name in names:
            if "arena_offsets" not in mod[name].attrs:
                raise PassError(f"function '{name}' has no plan: run relay_passes.PlanArena first")
        parts = {name: _Part(mod[name], self.first_results, constants) for name in dict.fromkeys(names)}
        calls = _joined([parts[name] for name in names], constants)
        return update_function(mod, self.function, attached(mod[self.function], calls))


Named = tuple[str, int]
"""Place before the table has its order: a table name or ``ARENA``, and an offset in bytes."""


class _Part:
    """Calls of one planned function, and the places of their operands."""

    def __init__(self, func: relax.Function, first_results: int | None, constants: dict[str, Constant]) -> None:
        self.func = func
        self.aliasing = aliasing = Aliasing(func)
        self.results = aliasing.results[:first_results]
        self.written: dict[Buffer, int] = {}
        """Results that a kernel writes straight to the caller's memory, by buffer. The others are copied."""
        for index, result in enumerate(self.results):
            for buffer in aliasing.buffers(result)[:1]:
                self.written.setdefault(buffer, index)
        self.offsets: dict[Buffer, int] = {}
        self.scratch: dict[relax.Var, int] = {}
        """Offset of the scratch of each binding that needs any."""
        for binding, offsets in zip(aliasing.bindings, func.attrs["arena_offsets"], strict=True):
            outputs = aliasing.outputs(binding)
            for output, offset in zip(outputs, offsets, strict=False):
                buffer, inside = aliasing.buffer_of(output)
                self.offsets[buffer] = int(offset) - inside
            if len(offsets) > len(outputs):
                self.scratch[binding.var] = int(offsets[-1])
        self.constants = constants
        self.kernels = [self._call(binding) for binding in aliasing.bindings if op_name(binding.value) in CALLS]
        self.copies = [
            ((f"result.{index}", 0), self._place(result), type_bytes(result.ty))
            for index, result in enumerate(self.results)
            if index not in self.written.values()
        ]
        # Views call no kernel and take no step.
        step = list(itertools.accumulate(op_name(binding.value) in CALLS for binding in aliasing.bindings))
        self.regions = [
            Region(str(name), int(offset), int(size), step[first] - 1, step[last] - 1)
            for name, offset, size, first, last in func.attrs["arena_map"]
        ]

    def types(self) -> dict[str, relax.TensorType]:
        """Return the types of parameters and results, by name."""
        return {param.name: param.ty for param in self.func.params} | {
            f"result.{index}": result.ty for index, result in enumerate(self.results)
        }

    def _call(self, binding: relax.VarBinding) -> tuple[str, list[Named]]:
        """Return a kernel's name and the places of its operands."""
        kernel, args = binding.value.args[0], list(binding.value.args[1].fields)
        places = [self._place(arg) for arg in args]
        places += [self._in_buffer(*self.aliasing.buffer_of(output)) for output in self.aliasing.outputs(binding)]
        if binding.var in self.scratch:
            places.append((ARENA, self.scratch[binding.var]))
        return kernel.name_hint, places

    def _place(self, expr: Expr) -> Named:
        buffers, offset = self.aliasing.buffers(expr), self.aliasing.offset(expr)
        if buffers:
            return self._in_buffer(buffers[0], offset)
        origin = self.aliasing.origin(expr)
        if isinstance(origin, Constant):
            name = constant_name(origin)
            self.constants[name] = origin
            return name, offset
        return origin.name, offset

    def _in_buffer(self, buffer: Buffer, offset: int) -> Named:
        """Return the place ``offset`` bytes into a temporary or a result."""
        if buffer in self.written:
            return f"result.{self.written[buffer]}", offset
        return ARENA, self.offsets[buffer] + offset


def _joined(parts: Sequence[_Part], constants: Mapping[str, Constant]) -> CallList:
    """Concatenate the calls of all parts of the batch."""
    whole = parts[-1]
    types = dict(item for part in parts for item in part.types().items())
    types |= {name: constant.ty for name, constant in constants.items()}
    rows = set(whole.func.attrs.get(CUT, ())) | {name for name in types if name.startswith("result.")}
    names = _table_order(types, {name for part in parts for name in _used(part)})
    position = {name: index for index, name in enumerate([*names, ARENA])}

    def place(at: Named, number: int) -> Place:
        """Resolve a place for part ``number``: offset by whole parts in cut inputs and results."""
        name, offset = at
        return Place(position[name], offset + (number * type_bytes(types[name]) if name in rows else 0))

    calls: list[KernelCall | Copy] = []
    regions: list[Region] = []
    for number, part in enumerate(parts):
        start = len(calls)
        regions += [each._replace(first=each.first + start, last=each.last + start) for each in part.regions]
        calls += [KernelCall(kernel, tuple(place(at, number) for at in places)) for kernel, places in part.kernels]
        calls += [Copy(place(to, number), place(source, number), size) for to, source, size in part.copies]
    table = [Tensor(name, *_described(types[name], len(parts) if name in rows else 1)) for name in names]
    size, bound = (max(int(part.func.attrs[name]) for part in parts) for name in ("arena_bytes", "arena_lower_bound"))
    return CallList(
        tuple(table),
        tuple(calls),
        Workspace(size, bound, tuple(regions)),
        {name: constant.value for name, constant in constants.items()},
    )


def constant_name(constant: Constant) -> str:
    """Return ``constant.<digest of type and bytes>``: equal constants of all entry points are one."""
    content = str(constant.ty).encode() + constant.value.numpy().tobytes()
    return f"constant.{hashlib.sha256(content).hexdigest()[:24]}"


def _used(part: _Part) -> set[str]:
    """Return the table names that the calls of a part use."""
    places = [place for _, operands in part.kernels for place in operands]
    return {name for name, _ in [*places, *(place for to, source, _ in part.copies for place in (to, source))]}


def _table_order(types: Iterable[str], used: set[str]) -> list[str]:
    """Order the table: used parameters, then all constants, then all results."""
    kinds = ("constant.", "result.")
    names = list(types)
    params = [name for name in names if name in used and not name.startswith(kinds)]
    return params + [name for kind in kinds for name in names if name.startswith(kind)]


def _described(ty: relax.TensorType, count: int) -> tuple[tuple[int, ...], str]:
    """Return the shape and dtype at an address that holds ``count`` parts, stacked along the first axis."""
    shape = tuple(int(extent) for extent in ty.shape)
    if count > 1:
        shape = (count * shape[0], *shape[1:]) if shape else (count,)
    return shape, str(ty.dtype.dtype)
