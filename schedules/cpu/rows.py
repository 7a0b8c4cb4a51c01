"""Row-wise kernels, written anew as one loop over rows: softmax, cross-entropy, layer and RMS norm, their gradients."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import tvm_ffi
from tvm import ir, s_tir, tirx
from tvm.s_tir.schedule import SBlockRV
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.tirx.analysis import undefined_vars

from ..decisions import Choices
from ..kernels import SMALL
from ..loops import Unsuited, extents_of, is_reduction, loads_of, split_by_kind
from .emit import unravelled
from .traits import CpuTraits

COMBINERS = (tirx.Add, tirx.Max, tirx.Min)
"""Reducers that may combine the elements of a row in any order."""


def row_wise(sch: s_tir.Schedule, choices: Choices, traits: CpuTraits) -> tirx.PrimFunc:
    """Write blocks that work on the same rows as one loop over rows.

    Applies where reductions run over the last axes. A row may have any length: whole vectors, then a shorter one. A
    reduction accumulates several vectors, which are then added up pairwise, in a fixed order. Blocks that need no
    result of each other for the whole row share a loop over its elements. TVM's schedule primitives have none of these.

    Decisions: ``parallel``, and ``<block>.vectors`` of each loop that reduces.
    """
    blocks = sch.get_child_blocks(sch.get_sblock("root"))
    depth = _depth(sch, blocks)
    for block in blocks[:-1]:
        is_full = not is_reduction(sch, block) and len(sch.get_loops(block)) > depth
        if is_full and len(sch.get_consumers(block)) == 1:
            sch.compute_inline(block)
    steps = [_step(sch, block, depth) for block in sch.get_child_blocks(sch.get_sblock("root"))]
    func = sch.mod["main"]
    rows = _Rows(func, traits, choices, extents_of(sch, sch.get_loops(blocks[-1]))[:depth], steps)
    return rows.function(parallel=choices.choose("parallel", (False, True), rows.work > SMALL))


def _depth(sch: s_tir.Schedule, blocks: Sequence[SBlockRV]) -> int:
    """Return how many leading loops run over rows: those that no reduction has."""
    reductions = [split_by_kind(sch, block) for block in blocks if is_reduction(sch, block)]
    reduced = {len(over) for _, over in reductions}
    if len(reduced) != 1:
        raise Unsuited("no reductions over the same axes")
    rank = max(len(split_by_kind(sch, block)[0]) for block in blocks)
    depth = rank - reduced.pop()  # where a block has the whole rows, or keeps the reduced axes
    if depth < 1 or any(math.prod(extents_of(sch, spatial[depth:])) != 1 for spatial, _ in reductions):
        depth = len(reductions[0][0])
    rows = extents_of(sch, sch.get_loops(blocks[-1]))[:depth]
    if not rows or len(rows) < depth:
        raise Unsuited("one row")
    for block in blocks:
        extents = extents_of(sch, split_by_kind(sch, block)[0])
        if extents[:depth] != rows or (is_reduction(sch, block) and math.prod(extents[depth:]) != 1):
            raise Unsuited("not everything works on the same rows")
    return depth


@dataclass(frozen=True)
class _Step:
    """A block: what it computes of each row, and stores in a buffer."""

    name: str
    row: list[tirx.Var]
    """Variables that stand for the row."""
    inner: list[tirx.Var]
    """Variables that stand for an element of the row."""
    extents: tuple[int, ...]
    """Their extents; 1 in all if it computes one number a row."""
    store: tirx.BufferStore
    init: tirx.Expr | None
    """The identity of a reduction; None in other blocks."""

    @property
    def length(self) -> int:
        """Elements of a row."""
        return math.prod(self.extents)

    @property
    def is_number(self) -> bool:
        """Whether it leaves one number a row."""
        return self.init is not None or self.length == 1

    @property
    def combine(self) -> Callable[[tirx.Expr, tirx.Expr], tirx.Expr]:
        """The reducer, of two values."""
        return type(self.store.value)

    @property
    def loop(self) -> tuple[int, ...]:
        """Extents of the loop that it needs; none if it computes a number from numbers."""
        return () if self.init is None and self.length == 1 else self.extents

    @property
    def target(self) -> tirx.Buffer:
        """The buffer that it fills."""
        return self.store.buffer


def _step(sch: s_tir.Schedule, block: SBlockRV, depth: int) -> _Step:
    stmt = sch.get(block)
    variables = [each.var for each in stmt.iter_vars]
    store, init = stmt.body, stmt.init
    if not isinstance(store, tirx.BufferStore) or stmt.annotations.get("schedule_rule"):
        raise Unsuited("a block with a schedule of its own, or several results")
    if is_reduction(sch, block):
        if type(store.value) not in COMBINERS or not _reads(store.value.a, store.buffer):
            raise Unsuited("a reduction whose order counts")
        if _strides_last(store.value.b, variables[-1]):
            raise Unsuited("what is reduced does not lie side by side")
        spatial = len(split_by_kind(sch, block)[0])
        extents = extents_of(sch, sch.get_loops(block)[spatial:])
        ones = [each.var for each in stmt.iter_vars[depth:spatial]]
        zero = {var: tirx.IntImm(str(var.ty.dtype), 0) for var in ones}
        value = tirx.BufferStore(store.buffer, _put(store.value, zero), [_put(at, zero) for at in store.indices])
        return _Step(stmt.name_hint, variables[:depth], variables[spatial:], tuple(extents), value, init.value)
    extents = extents_of(sch, sch.get_loops(block)[depth:])
    return _Step(stmt.name_hint, variables[:depth], variables[depth:], tuple(extents), store, None)


def _reads(expr: tirx.Expr, buffer: tirx.Buffer) -> bool:
    return isinstance(expr, ir.TensorLoad) and expr.source.same_as(buffer)


def _strides_last(term: tirx.Expr, last: tirx.Var) -> bool:
    """Return whether a term reads a buffer along ``last`` by another axis than its last: a column, or a window."""
    return any(last in undefined_vars(at, []) for load in loads_of(term) for at in load.indices[:-1])


def _put(expr: tirx.Expr, values: dict[tirx.Var, tirx.Expr]) -> tirx.Expr:
    return tvm_ffi.structural_map(expr, (tirx.Var, lambda var: values.get(var, var)))


@dataclass
class _Rows:
    """Writer of the loop over rows."""

    func: tirx.PrimFunc
    traits: CpuTraits
    choices: Choices
    rows: list[int]
    steps: list[_Step]
    own: dict[tirx.Buffer, tirx.Buffer] = field(default_factory=dict)
    """Buffers of one row, by those of all rows that they stand for."""

    def __post_init__(self) -> None:
        self.made = {step.target: step for step in self.steps}
        if len(self.made) != len(self.steps):
            raise Unsuited("a buffer is written twice")
        self.levels = self._levels()

    @property
    def work(self) -> int:
        """Elements of all rows and steps' longest loop."""
        return math.prod(self.rows) * max(step.length for step in self.steps)

    def _levels(self) -> list[list[list[_Step]]]:
        """Group steps into loops, and loops into levels: each level needs the whole rows of those before it."""
        level: dict[tirx.Buffer, int] = {}
        for step in self.steps:
            needed = [0]
            for load in loads_of(step.store.value):
                source = self.made.get(load.source)
                if source is None or source is step:
                    continue
                if any(not at.same_as(var) for at, var in zip(load.indices, step.row, strict=False)):
                    raise Unsuited("a row reads another one")
                needed.append(level[source.target] + (not self._is_beside(load, step, source)))
            level[step.target] = max(needed)
        found = []
        for count in range(max(level.values()) + 1):
            each = sorted((step for step in self.steps if level[step.target] == count), key=lambda step: step.loop)
            found.append([list(group) for _, group in itertools.groupby(each, key=lambda step: step.loop)])
        return found

    @staticmethod
    def _is_beside(load: ir.TensorLoad, step: _Step, source: _Step) -> bool:
        """Return whether a step, in the loop of another one, finds there what it reads of that."""
        own = load.indices[len(step.row) :]
        same = len(own) == len(step.inner) and all(map(tirx.Var.same_as, own, step.inner))
        return source.init is None and step.loop == source.loop and (same or not step.loop)

    def function(self, *, parallel: bool) -> tirx.PrimFunc:
        """Build the kernel."""
        with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
            T.func_name("rows")
            T.func_attr({"tirx.noalias": True})
            for param in self.func.params:
                self.own[param] = T.arg(param.name, T.Buffer(param.shape, str(param.dtype)))
            with T.sblock("root"), (T.parallel if parallel else T.serial)(_int(math.prod(self.rows))) as row:
                self.place = unravelled(row, self.rows)
                for step in self.steps:
                    if step.target not in self.own:
                        shape, scope = ((1,), "local") if step.is_number else ((step.length,), "global")
                        self.own[step.target] = T.alloc_buffer(shape, str(step.target.dtype), scope=scope)
                for loop in itertools.chain(*self.levels):
                    self._loop(loop)
        return builder.get()

    def _loop(self, steps: Sequence[_Step]) -> None:
        """Run over the elements of a row once."""
        if not steps[0].loop:
            for step in steps:
                self._store(step, [_int(0)] * len(step.inner))
            return
        length, lanes = steps[0].length, self.traits.lanes
        reductions = [step for step in steps if step.init is not None]
        vectors = 1
        if reductions:
            offered = [n for n in (4, 2, 1, 8) if n <= max(1, length // lanes)]
            vectors = self.choices.choose(f"{reductions[0].name}.vectors", offered, offered[0])
        width = vectors * lanes
        sums = {step.target: T.alloc_buffer((width,), str(step.target.dtype), scope="local") for step in reductions}
        for step in reductions:
            _fill(sums[step.target], step.init, vectors, lanes)

        def elements(start: tirx.Expr, count: int, lanes: int) -> None:
            def element(lane: tirx.Expr) -> None:
                for step in steps:
                    inner = unravelled(start + lane, step.extents)
                    if step.init is None:
                        self._store(step, inner)
                    else:
                        total, value = sums[step.target], self._value(step, step.store.value.b, inner)
                        T.buffer_store(total, step.combine(total[lane], value), [lane])

            _each(count, lanes, element)

        if length >= width:
            with T.serial(_int(length // width)) as count:
                elements(count * width, vectors, lanes)
        whole, rest = length // lanes * lanes, length % lanes
        if whole % width:
            elements(_int(whole // width * width), whole % width // lanes, lanes)
        if rest:
            elements(_int(whole), 1, rest)
        for step in reductions:
            self._combine(step, sums[step.target], vectors)

    def _combine(self, step: _Step, total: tirx.Buffer, vectors: int) -> None:
        """Reduce vectors to one, that to a half, and so on."""

        def add(start: int, lanes: int) -> None:
            _each(1, lanes, lambda at: T.buffer_store(total, step.combine(total[at], total[start + at]), [at]))

        lanes = self.traits.lanes
        for vector in range(1, vectors):
            add(vector * lanes, lanes)
        while lanes > 1:
            lanes //= 2
            add(lanes, lanes)
        self._write(step, total[0], [_int(0)] * len(step.inner))

    def _store(self, step: _Step, inner: Sequence[tirx.Expr]) -> None:
        self._write(step, self._value(step, step.store.value, inner), inner)

    def _write(self, step: _Step, value: tirx.Expr, inner: Sequence[tirx.Expr]) -> None:
        if step.target in self.func.params:
            at = [_put(index, self._places(step, inner)) for index in step.store.indices]
        else:
            at = [_int(0) if step.is_number else _ravelled(inner, step.extents)]
        T.buffer_store(self.own[step.target], value, at)

    def _places(self, step: _Step, inner: Sequence[tirx.Expr]) -> dict[tirx.Var, tirx.Expr]:
        return dict(zip([*step.row, *step.inner], [*self.place, *inner], strict=True))

    def _value(self, step: _Step, value: tirx.Expr, inner: Sequence[tirx.Expr]) -> tirx.Expr:
        """Return an expression of a step at an element of the present row."""

        def read(load: ir.TensorLoad) -> tirx.Expr:
            at, source = load.indices, self.made.get(load.source)
            if source is not None and load.source not in self.func.params:
                at = [_int(0) if source.is_number else _ravelled(at[len(step.row) :], source.extents)]
            return tirx.BufferLoad(self.own[load.source], at)

        return tvm_ffi.structural_map(_put(value, self._places(step, inner)), (ir.TensorLoad, read))


def _each(count: int, lanes: int, body: Callable[[tirx.Expr], None]) -> None:
    """Emit ``body`` for the lanes of so many vectors."""
    with contextlib.ExitStack() as loops:
        at: tirx.Expr = _int(0)
        if count > 1:
            at = loops.enter_context(T.unroll(_int(count))) * lanes
        if lanes > 1:
            at = at + loops.enter_context(T.vectorized(_int(lanes)))
        body(at)


def _fill(buffer: tirx.Buffer, value: tirx.Expr | None, count: int, lanes: int) -> None:
    """Emit stores of ``value`` to all lanes of so many vectors."""
    _each(count, lanes, lambda lane: T.buffer_store(buffer, value, [lane]))


def _ravelled(places: Sequence[tirx.Expr], extents: Sequence[int]) -> tirx.Expr:
    """Return an element's place in row-major order, by its index along each axis."""
    position: tirx.Expr = _int(0)
    for place, extent in zip(places, extents, strict=True):
        position = position * extent + place
    return position


def _int(value: int) -> tirx.IntImm:
    return tirx.IntImm("int64", value)
