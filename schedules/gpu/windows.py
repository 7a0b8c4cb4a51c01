"""Short reductions of elements that are adjacent as their results are, such as pooling: a thread a few results."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tvm_ffi
from tvm import ir, s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from ..decisions import Choices
from ..emit import substituted, unrolled, vector, where
from ..loops import Unsuited, extents_of, is_reduction, split_by_kind
from .emit import bound, is_contiguous, lanes_of_load, lanes_of_value, local
from .fallback import shares, threads_of
from .products.contraction import INDEX, Axis, Env, axis_of, epilogue_of, isolate, places, uses, with_sum
from .traits import GpuTraits

MOST_TERMS = 256
"""Longest reduction. In a longer one, threads of the fallback schedule may share the terms."""
FEWEST_RESULTS = 64
"""Fewest results: of fewer, the tuner may let threads share the terms."""
UNROLLED = 32
"""Terms that are written out: windows of 5 x 5, and fewer."""


def windows(sch: s_tir.Schedule, traits: GpuTraits, choices: Choices) -> tirx.PrimFunc:
    """Write a reduction anew, with what is element-wise around it.

    Applies to one reduction of up to ``MOST_TERMS`` terms, where elements of adjacent results are adjacent: of images
    with channels last, over pixels. What several adjacent results read is loaded at once.

    Decisions: ``lanes``: adjacent results of a thread. ``threads``.
    """
    func = sch.mod["main"]
    blocks = sch.get_child_blocks(sch.get_sblock("root"))
    reductions = [each for each in blocks if is_reduction(sch, each)]
    if len(reductions) != 1:
        raise Unsuited("not one reduction")
    outer = split_by_kind(sch, reductions[0])[0]
    if extents_of(sch, split_by_kind(sch, blocks[-1])[0]) != extents_of(sch, outer):
        raise Unsuited("a result is read several times")
    copy = isolate(sch, reductions[0])
    stmt = sch.get(reductions[0])
    spatial, reduced = ([axis_of(each) for each in stmt.iter_vars if int(each.iter_type) == kind] for kind in (0, 2))
    results, terms = (math.prod(int(axis.extent) for axis in axes) for axes in (spatial, reduced))
    if results < FEWEST_RESULTS or terms > MOST_TERMS or shares(results, terms, traits):
        raise Unsuited("few results, or long reductions")
    store, kept = epilogue_of(sch, copy, [axis.var for axis in spatial])
    reads = [load for each in _stores(stmt.body) for load in _reads(each.value, stmt)]
    if not any(is_contiguous(load.indices, spatial) for load in reads):
        raise Unsuited("adjacent results read what is not adjacent")
    widest = min([LONGEST, *(lanes_of_value(load) for load in reads)])
    offered = [lanes for lanes in (4, 2, 1) if lanes <= widest and int(spatial[-1].extent) % lanes == 0]
    lanes = choices.choose("lanes", offered, offered[0])
    threads = threads_of("threads", traits, choices)
    return func.with_body(_Windows(stmt, spatial, reduced, store, kept, lanes, threads).written())


LONGEST = 4
"""Most results of a thread, and elements of the longest vector that every dialect has."""


class _Load(NamedTuple):
    """Operand elements that adjacent results read, and registers for them."""

    load: ir.TensorLoad
    exists: tirx.Expr
    """Condition on which it is read."""
    registers: tirx.Buffer


class _Windows:
    """A reduction while its loops are written."""

    def __init__(
        self,
        block: s_tir.SBlock,
        spatial: Sequence[Axis],
        reduced: Sequence[Axis],
        store: tirx.BufferStore,
        kept: tirx.Expr | None,
        lanes: int,
        threads: int,
    ) -> None:
        self.block, self.spatial, self.reduced = block, spatial, reduced
        self.store, self.kept = store, kept
        self.lanes, self.threads = lanes, threads
        self.loads: list[_Load] = []
        self.lane = tirx.Var("lane", INDEX)

    def written(self) -> tirx.Stmt:
        """Return the loops: one launch."""
        channel = Axis(self.spatial[-1].var, int(self.spatial[-1].extent) // self.lanes)
        axes = [*self.spatial[:-1], channel]
        count = math.prod(int(axis.extent) for axis in axes)
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            blocks = math.ceil(count / self.threads)
            with bound(blocks, "blockIdx.x") as block, bound(self.threads, "threadIdx.x") as thread:
                number = block * self.threads + thread
                with where(number < count if count % self.threads else None):
                    at = places(number, axes)
                    self._write({**at, channel.var: at[channel.var] * self.lanes})
        return builder.get().body

    def _write(self, at: Env) -> None:
        """Write a thread's work. ``at``: its first result."""
        stores = _stores(self.block.body)
        self.results = {
            each.buffer: local(f"result{number}", self.lanes, str(each.buffer.dtype))
            for number, each in enumerate(stores)
        }
        values = [self._of_lane(each.value) for each in stores]
        coming = [local("coming", 1, str(each.buffer.dtype)) for each in stores]
        with unrolled(self.lanes) as lane:
            for each in _stores(self.block.init):
                T.buffer_store(self.results[each.buffer], each.value, [lane])
        with contextlib.ExitStack() as loops:
            is_short = math.prod(int(axis.extent) for axis in self.reduced) <= UNROLLED
            loop: Callable[..., Any] = T.unroll if is_short else T.serial
            terms = {axis.var: loops.enter_context(loop(tirx.const(axis.extent, INDEX))) for axis in self.reduced}
            for load in self.loads:
                self._fetch(load, {**at, **terms})
            with unrolled(self.lanes) as lane:
                place = self._at({**at, **terms}, lane)
                for registers, value in zip(coming, values, strict=True):
                    T.buffer_store(registers, substituted(value, {**place, self.lane: lane}), [0])
                for registers, each in zip(coming, stores, strict=True):
                    T.buffer_store(self.results[each.buffer], registers[0], [lane])
        self._store(at)

    def _of_lane(self, value: tirx.Expr) -> tirx.Expr:
        """Return the value of a result with registers instead of what is stored, and of what is loaded for several
        results at once, which is noted."""
        conditions: list[tirx.Expr] = []

        def call(node: ir.Call, inner: Any) -> tirx.Expr:
            if node.op.name != "prim.if_then_else":
                return inner.default_mutate(node)
            condition, then, otherwise = node.args
            branches = []
            for holds, branch in ((condition, then), (tirx.Not(condition), otherwise)):
                conditions.append(holds)
                branches.append(inner.mutate(branch))
                conditions.pop()
            return tirx.if_then_else(condition, *branches)

        def load(node: ir.TensorLoad, _inner: Any) -> tirx.Expr:
            if node.source in self.results:
                return self.results[node.source][self.lane]
            exists = tirx.all(*conditions) if conditions else tirx.const(True, "bool")
            if not is_contiguous(node.indices, self.spatial) or uses(exists, self.spatial[-1].var):
                return node
            return self._registers(node, exists)[self.lane]

        return tvm_ffi.structural_mutate(value, [(ir.Call, call), (ir.TensorLoad, load)])

    def _registers(self, load: ir.TensorLoad, exists: tirx.Expr) -> tirx.Buffer:
        """Return the registers of a load, which may have been met before."""
        for each in self.loads:
            if tvm_ffi.structural_equal([each.load, each.exists], [load, exists]):
                return each.registers
        registers = local("held", self.lanes, str(load.ty.dtype))
        self.loads.append(_Load(load, exists, registers))
        return registers

    def _fetch(self, load: _Load, at: Env) -> None:
        """Write a load of what adjacent results read, at the first of them."""
        value, exists = load.load, substituted(load.exists, at)
        lanes = math.gcd(lanes_of_load(value, self.spatial, LONGEST), self.lanes)
        with unrolled(self.lanes // lanes) as number, vector(lanes) as lane:
            found = substituted(value, self._at(at, number * lanes + lane))
            kept = tirx.if_then_else(exists, found, tirx.const(0, str(value.ty.dtype)))
            T.buffer_store(load.registers, kept, [number * lanes + lane])

    def _store(self, at: Env) -> None:
        """Write the stores of a thread's results."""
        sums = self.block.writes[0].source
        lanes = self.lanes if is_contiguous(self.store.indices, self.spatial) else 1
        lanes = min(lanes, lanes_of_value(self.store.value))
        with unrolled(self.lanes // lanes) as number, vector(lanes) as lane:
            place = self._at(at, number * lanes + lane)
            store = substituted(self.store, place)
            value = with_sum(store.value, sums, self.results[sums][number * lanes + lane])
            with where(None if self.kept is None else substituted(self.kept, place)):
                T.buffer_store(store.buffer, value, list(store.indices))

    def _at(self, at: Env, lane: tirx.Expr) -> Env:
        """Return the place of one of a thread's results."""
        channel = self.spatial[-1].var
        return {**at, channel: at[channel] + lane}


def _stores(body: tirx.Stmt) -> list[tirx.BufferStore]:
    """Return what a block stores, with the values of its bindings."""
    stores: list[tirx.BufferStore] = []
    bound_to: dict[tirx.Var, tirx.Expr] = {}
    for stmt in body.seq if isinstance(body, tirx.SeqStmt) else [body]:
        if isinstance(stmt, tirx.Bind):
            bound_to[stmt.var] = substituted(stmt.value, bound_to)
        elif isinstance(stmt, tirx.BufferStore):
            stores.append(substituted(stmt, bound_to))
        else:
            raise Unsuited("a block that does not only store")
    return stores


def _reads(value: tirx.Expr, block: s_tir.SBlock) -> list[ir.TensorLoad]:
    """Return what a value reads of a block's operands."""
    own = {region.source for region in block.writes}
    found: list[ir.TensorLoad] = []
    tvm_ffi.structural_walk(value, (ir.TensorLoad, found.append))
    return [load for load in found if load.source not in own]
