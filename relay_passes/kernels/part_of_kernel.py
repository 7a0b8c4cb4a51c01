"""Rewrites a kernel to compute its results for a part of the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import tvm_ffi
from tvm import ir, s_tir, tirx
from tvm.sym import Analyzer
from tvm.tirx.analysis import undefined_vars

from schedules.kernels import comes_scheduled
from schedules.loops import loads_of


def part_of_kernel(func: tirx.PrimFunc, count: int) -> tuple[tirx.PrimFunc, list[int]] | None:
    """Shrink a kernel to one of ``count`` equal parts along the first axis of its result, its last parameter.

    Returns the kernel of a part, and the positions of the parameters of which it takes a part, the result's among them:
    each part reads the same part of an operand, or all of it. None if a part of the result needs more than that.
    """
    if comes_scheduled(func) or not all(isinstance(each.elem_offset, tirx.IntImm) for each in func.params):
        return None
    cut = _Cut(count, {func.params[-1]})
    if not cut.follow(func):
        return None
    part = _Part(count, cut).function(func)
    return part, [at for at, param in enumerate(func.params) if param in cut.buffers]


@dataclass
class _Cut:
    """Buffers, axes and loops that a part of the result divides."""

    count: int
    buffers: set[tirx.Var]
    axes: set[tirx.Var] = field(default_factory=set)
    """Axes of blocks, one in each that fills such a buffer."""
    loops: set[tirx.Var] = field(default_factory=set)
    """Variables of the loops over them."""

    def follow(self, func: tirx.PrimFunc) -> bool:
        """Find, from the result back, all that is cut; return whether a part needs nothing else."""
        realized: list[s_tir.SBlockRealize] = []
        tvm_ffi.structural_walk(func.body, (s_tir.SBlockRealize, realized.append))
        whole: set[tirx.Var] = set()
        for each in reversed(realized):
            block = each.block
            if block.name_hint == "root":
                continue
            store = block.body
            if not isinstance(store, tirx.BufferStore) or block.match_buffers:
                return False
            if store.buffer not in self.buffers:
                whole.update(load.source for load in loads_of(store))
            elif not self._block(each, store, whole):
                return False
        return not self.buffers & whole

    def _block(self, realized: s_tir.SBlockRealize, store: tirx.BufferStore, whole: set[tirx.Var]) -> bool:
        """Cut a block along the axis that is the first of its result, and what it reads along that axis."""
        block = realized.block
        axes = {each.var: each for each in block.iter_vars}
        first = axes.get(store.indices[0]) if store.indices else None
        if first is None or int(first.iter_type) != tirx.IterVar.DataPar or int(first.dom.extent) % self.count:
            return False
        loop, analyzer = dict(zip(axes, realized.iter_values, strict=True))[first.var], Analyzer()
        for each in block.iter_vars:
            analyzer.bind(each.var, each.dom)
        for load in loads_of(store):
            if not any(_uses(at, first.var) for at in load.indices):
                whole.add(load.source)
            elif _is_along(load, first, analyzer):
                self.buffers.add(load.source)
            else:
                return False
        plain = tvm_ffi.structural_map(store.value, (ir.TensorLoad, lambda load: tirx.const(0, str(load.ty.dtype))))
        others = [plain, *store.indices[1:], *([block.init.value] if block.init else [])]
        if any(_uses(each, first.var) for each in others) or not isinstance(loop, tirx.Var):
            return False
        self.axes.add(first.var)
        self.loops.add(loop)
        return True


def _is_along(load: ir.TensorLoad, axis: tirx.IterVar, analyzer: Analyzer) -> bool:
    """Return whether each value of an axis reads a range of its own of the first axis of a buffer, all as long."""
    length, rest = divmod(int(load.source.shape[0]), int(axis.dom.extent))
    if rest:
        return False
    inside = analyzer.simplify(load.indices[0] - axis.var * length)
    bound = analyzer.const_int_bound(inside)
    is_inside = bound.min_value >= 0 and bound.max_value < length
    return is_inside and not any(_uses(at, axis.var) for at in (inside, *load.indices[1:]))


def _uses(expr: tirx.Expr, var: tirx.Var) -> bool:
    return any(var.same_as(each) for each in undefined_vars(expr, []))


@dataclass
class _Part:
    """Writer of the kernel of a part."""

    count: int
    cut: _Cut
    renewed: dict[tirx.Var, tirx.Var] = field(default_factory=dict)
    """Buffers of a part, by those of the whole."""

    def function(self, func: tirx.PrimFunc) -> tirx.PrimFunc:
        """Return the kernel of a part."""
        for buffer in self.cut.buffers:
            first, *others = buffer.shape
            shape = [first // self.count, *others]
            self.renewed[buffer] = tirx.decl_buffer(shape, str(buffer.ty.dtype), buffer.name, layout=None)
        callbacks: list[tuple[Any, Callable]] = [
            (tirx.Var, lambda node, _inner: self.renewed.get(node, node)),
            (tirx.For, self._loop),
            (s_tir.SBlock, self._block),
        ]
        body = tvm_ffi.structural_mutate(func.body, callbacks)
        params = [self.renewed.get(param, param) for param in func.params]
        return tirx.PrimFunc(params, body, func.ret_type, func.attrs)

    def _loop(self, node: tirx.For, inner: Any) -> tirx.For:
        new = inner.default_mutate(node)
        if node.loop_var not in self.cut.loops:
            return new
        return tirx.For(new.loop_var, new.min, new.extent // self.count, new.kind, new.body)

    def _block(self, node: s_tir.SBlock, inner: Any) -> s_tir.SBlock:
        new = inner.default_mutate(node)
        axes = [self._axis(each) if each.var in self.cut.axes else each for each in new.iter_vars]
        return s_tir.SBlock(
            axes, new.reads, new.writes, new.name_hint, new.body, new.init, new.alloc_buffers, new.match_buffers,
            new.annotations,
        )  # fmt: skip

    def _axis(self, axis: tirx.IterVar) -> tirx.IterVar:
        dom = ir.Range.from_min_extent(axis.dom.min, axis.dom.extent // self.count)
        return tirx.IterVar(dom, axis.var, axis.iter_type)
