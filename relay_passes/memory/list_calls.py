"""Builds the call list of a planned function."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import tvm
from tvm import IRModule, relax

from ..analysis.aliasing import Aliasing, Buffer
from ..analysis.batch_axis import WHOLE
from ..analysis.verify import written_by
from ..canonical.split_batch import CUT
from ..errors import PassError
from ..ir import CALLS, Constant, Expr, dtype_of, is_float, op_name, shape_of, stored_as, type_bytes, update_function
from ..ir.append import GRADIENT_SUM, states_of
from ..kernels.fuse_updates import PRODUCT_UPDATES
from .call_list import (
    FACTOR,
    GRADIENT,
    INPUT,
    LOSS,
    NOTHING,
    STATE,
    STATISTIC,
    SUMS,
    WRITTEN,
    Call,
    CallList,
    Check,
    Copy,
    KernelCall,
    Place,
    Region,
    Tensor,
    Workspace,
    attached,
)

ARENA = "arena"


@tvm.transform.module_pass(opt_level=0, name="ListCalls")
@dataclass(frozen=True)
class ListCalls:
    """Attach its :class:`CallList` to a planned function.

    In: a function planned by :class:`PlanArena`. Out: the same function with its call list, for :func:`call_list_of`
    and :class:`LowerToExecutor`. ``first_results`` limits the number of results; the caller already holds the others,
    which are updated in place.

    ``before`` names planned functions whose calls come first. Each of them, and then this one, takes the next part of
    the inputs in ``cut_inputs`` (:class:`SplitBatch`), and writes the next row of each result. A parameter that reads
    such an input as a whole (:class:`SplitLoss`) is no further input.

    With ``checked`` the list of a training step holds a :class:`Check` of every tensor of floating-point numbers that
    may spoil its state, each before the calls that read it in place: inputs (``num_input``) first, the loss (the first
    result) and the gradients as soon as they are written, while they are in the cache.
    """

    function: str = "main"
    first_results: int | None = None
    before: Sequence[str] = ()
    checked: bool = False

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        names, constants = (*self.before, self.function), dict[str, Constant]()
        for name in names:
            if "arena_offsets" not in mod[name].attrs:
                raise PassError(f"function '{name}' has no plan: run relay_passes.PlanArena first")
        parts = {
            name: _Part(mod[name], self.first_results, constants, checked=self.checked) for name in dict.fromkeys(names)
        }
        calls = _joined([parts[name] for name in names], constants, checked=self.checked)
        return update_function(mod, self.function, attached(mod[self.function], calls))


Named = tuple[str, int]
"""Place before the table has its order: a table name or ``ARENA``, and an offset in bytes."""


class _Listed(NamedTuple):
    """Call with places that have no table yet."""

    places: Sequence[Named]
    make: Callable[..., Call]
    """Makes the call of its places."""
    writes: str = NOTHING
    """Its in-place write: one of ``WRITTEN``."""


class _Part:
    """Calls of one planned function, and the places of their operands."""

    def __init__(
        self, func: relax.Function, first_results: int | None, constants: dict[str, Constant], *, checked: bool
    ) -> None:
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
        checks = self._checks() if checked else {}
        self.calls: list[_Listed] = []
        at: list[int] = []
        """Position of the kernel that each binding calls. Views call none, and take no position of their own."""
        for binding in aliasing.bindings:
            if op_name(binding.value) in CALLS:
                at.append(len(self.calls))
                self.calls += [self._call(binding), *checks.get(binding.var, ())]
            else:
                at.append(at[-1] if at else 0)
        self.calls += [
            _Listed([(f"result.{index}", 0), self._place(result)], partial(Copy, size=type_bytes(result.ty)))
            for index, result in enumerate(self.results)
            if index not in self.written.values()
        ]
        self.regions = [
            Region(str(name), int(offset), int(size), at[first], at[last])
            for name, offset, size, first, last in func.attrs["arena_map"]
        ]

    def types(self) -> dict[str, relax.TensorType]:
        """Return the types of parameters and results, by name."""
        return {param.name: param.ty for param in self.func.params} | {
            f"result.{index}": result.ty for index, result in enumerate(self.results)
        }

    def _call(self, binding: relax.VarBinding) -> _Listed:
        """Return the call of a kernel."""
        kernel, args = binding.value.args[0], list(binding.value.args[1].fields)
        places = [self._place(arg) for arg in args]
        places += [self._in_buffer(*self.aliasing.buffer_of(output)) for output in self.aliasing.outputs(binding)]
        if binding.var in self.scratch:
            places.append((ARENA, self.scratch[binding.var]))
        return _Listed(places, lambda *at: KernelCall(kernel.name_hint, at), _writes(self.func, binding))

    def _checks(self) -> dict[relax.Var, list[_Listed]]:
        """Return the checks of the loss, and of what in-place calls read that other calls wrote: gradients, their sums,
        statistics. The key is the binding whose call writes the last of it."""
        last: dict[Buffer | relax.Var, relax.Var] = {}
        found: dict[relax.Var, dict[tuple[Named, ...], _Listed]] = {}
        order = {binding.var: number for number, binding in enumerate(self.aliasing.bindings)}

        def source(value: Expr) -> Buffer | Expr:
            return next(iter(self.aliasing.buffers(value)), value)

        def check(values: Sequence[Expr], kind: str, name: str) -> None:
            """Add a check of a value, or of two factors."""
            places = [self._place(value) for value in values]
            count, *more = (math.prod(shape_of(value)) for value in values)

            def make(place: Place, *others: Place) -> Check:
                other = (others[0], more[0]) if others else None
                return Check(place, count, dtype_of(values[0]), kind, name, NOTHING, other)

            when = max((last[source(value)] for value in values), key=order.__getitem__)
            found.setdefault(when, {}).setdefault(tuple(places), _Listed(places, make))

        def is_made(value: Expr) -> bool:
            return is_float(value) and source(value) in last

        for binding in self.aliasing.bindings:
            written = set(written_by(binding.value))
            operands: Sequence[Expr] = binding.value.args[1].fields if written else []
            read = [arg for arg in operands if arg not in written and is_made(arg)]
            if read:
                kind, name = _named(self.func, operands[0].name)
                if kind == FACTOR:  # the operands of the product come last
                    check(read[-2:], kind, name)
                    kind, read = GRADIENT, read[:-2]
                for value in read:
                    check([value], kind, name)
            last |= dict.fromkeys(
                (self.aliasing.buffer_of(output)[0] for output in self.aliasing.outputs(binding)), binding.var
            )
            last |= dict.fromkeys(written, binding.var)
        if is_made(self.results[0]):
            check([self.results[0]], LOSS, "")
        return {var: list(checks.values()) for var, checks in found.items()}

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


def _writes(func: relax.Function, binding: relax.VarBinding) -> str:
    """Return what a call writes in place: one of ``WRITTEN``."""
    states = states_of(func)
    slots = {states.get(var.name, (STATE, ""))[0] for var in written_by(binding.value)}
    return NOTHING if not slots else SUMS if slots == {GRADIENT_SUM} else STATE


def _named(func: relax.Function, name: str) -> tuple[str, str]:
    """Return kind and name of what is read to write a parameter in place."""
    _, owner = states_of(func).get(name, (None, name))
    if owner in func.attrs.get("state_updates", []):
        return STATISTIC, owner
    return (FACTOR if name in func.attrs.get(PRODUCT_UPDATES, []) else GRADIENT), owner


def _joined(parts: Sequence[_Part], constants: Mapping[str, Constant], *, checked: bool) -> CallList:
    """Concatenate the calls of all parts of the batch."""
    whole = parts[-1]
    types = dict(item for part in parts for item in part.types().items())
    types |= {name: constant.ty for name, constant in constants.items()}
    rows = set(whole.func.attrs.get(CUT, ())) | {name for name in types if name.startswith("result.")}
    used = {name.removesuffix(WHOLE) for part in parts for listed in part.calls for name, _ in listed.places}
    names = _table_order([name for name in types if not name.endswith(WHOLE)], used)
    position = {name: index for index, name in enumerate([*names, ARENA])}
    table = [Tensor(name, *_described(types[name], len(parts) if name in rows else 1)) for name in names]

    def place(at: Named, number: int) -> Place:
        """Resolve a place for part ``number``: offset by whole parts in cut inputs and results."""
        name, offset = at
        return Place(
            position[name.removesuffix(WHOLE)], offset + (number * type_bytes(types[name]) if name in rows else 0)
        )

    calls: list[Call] = list(_input_checks(whole.func, table)) if checked else []
    regions: list[Region] = []
    written = NOTHING
    for number, part in enumerate(parts):
        start = len(calls)
        regions += [each._replace(first=each.first + start, last=each.last + start) for each in part.regions]
        for places, make, writes in part.calls:
            call = make(*(place(at, number) for at in places))
            calls.append(replace(call, written=written) if isinstance(call, Check) else call)
            written = max(written, writes, key=WRITTEN.index)
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


def _input_checks(func: relax.Function, table: Sequence[Tensor]) -> Iterator[Check]:
    """Yield the checks of the inputs that are read, each of all parts at once."""
    inputs = {param.name for param in func.params[: int(func.attrs["num_input"])] if is_float(param)}
    for position, (name, shape, dtype) in enumerate(table):
        if name in inputs:
            yield Check(Place(position, 0), math.prod(shape), dtype, INPUT, name, NOTHING)


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
    return shape, stored_as(str(ty.dtype.dtype))
