"""Rewrites a kernel: some operands are stored in 16 bits, and its products multiply numbers of 16 bits."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import tvm
import tvm_ffi
from tvm import ir, s_tir, tirx

from schedules.kernels import EXACT
from schedules.loops import factors_of, loads_of

WIDE = "float32"
"""Type of arithmetic, and of what is stored before it is narrowed."""


def narrow_kernel(func: tirx.PrimFunc, operands: Collection[int], dtype: str) -> tirx.PrimFunc:
    """Store ``operands`` (by position, float32) of a kernel in ``dtype``. Products round their factors to ``dtype``.

    What is loaded is converted to float32, and what is stored from it. A sum is stored once it is complete.
    """
    results = [func.params[at] for at in operands]
    for name in [block.name_hint for block, _ in products_of(func) if block.writes[0].source in results]:
        func = _stored_apart(func, name)
    narrowed = [func.params[at] for at in operands]
    return _Narrowing(func, narrowed, dtype).function()


def products_of(func: tirx.PrimFunc) -> list[tuple[s_tir.SBlock, list[tirx.Expr]]]:
    """Return the blocks of a kernel that sum products in float32, each with its two factors."""
    found: list[tuple[s_tir.SBlock, list[tirx.Expr]]] = []

    def visit(block: s_tir.SBlock) -> None:
        factors = _factors(block)
        if factors:
            found.append((block, factors))

    tvm_ffi.structural_walk(func.body, (s_tir.SBlock, visit))
    return found


def operands_of_products(func: tirx.PrimFunc) -> set[int]:
    """Return the operands of a kernel that its products read as factors, straight or through other blocks, by
    position."""
    writers: dict[tirx.Var, list[s_tir.SBlock]] = {}

    def visit(block: s_tir.SBlock) -> None:
        for region in block.writes:
            writers.setdefault(region.source, []).append(block)

    tvm_ffi.structural_walk(func.body, (s_tir.SBlock, visit))
    waiting = [load.source for _, factors in products_of(func) for each in factors for load in loads_of(each)]
    read: set[tirx.Var] = set()
    while waiting:
        buffer = waiting.pop()
        if buffer not in read:
            read.add(buffer)
            waiting += [region.source for block in writers.get(buffer, []) for region in block.reads]
    return {at for at, param in enumerate(func.params) if param in read}


def sums_of(func: tirx.PrimFunc) -> set[int]:
    """Return the operands of a kernel that hold results of reductions other than products, or what is made of them
    (``schedules.kernels.EXACT``), by position."""
    products = {block.name_hint for block, _ in products_of(func)}
    found: set[tirx.Var] = set()

    def visit(block: s_tir.SBlock) -> None:
        is_sum = block.name_hint not in products and any(int(each.iter_type) == 2 for each in block.iter_vars)
        if is_sum or EXACT in block.annotations:
            found.update(region.source for region in block.writes)

    tvm_ffi.structural_walk(func.body, (s_tir.SBlock, visit))
    return {at for at, param in enumerate(func.params) if param in found}


def _factors(block: s_tir.SBlock) -> list[tirx.Expr]:
    """Return the factors of a sum of products that a schedule knows; none for any other block."""
    factors = factors_of(block) if "schedule_rule" in block.annotations else None
    if factors is None or str(block.body.value.ty.dtype) != WIDE:
        return []
    return list(factors[:2])


def _stored_apart(func: tirx.PrimFunc, block: str) -> tirx.PrimFunc:
    """Let a block sum in a buffer of its own, which another block copies to the result."""
    sch = s_tir.Schedule(tvm.IRModule({"main": func}))
    sch.cache_write(sch.get_sblock(block), 0, "global")
    return sch.mod["main"].with_attrs(func.attrs)


@dataclass
class _Narrowing:
    func: tirx.PrimFunc
    operands: list[tirx.Var]
    dtype: str
    renewed: dict[tirx.Var, tirx.Var] = field(default_factory=dict)
    """Narrow buffers by the float32 ones that they replace."""

    def function(self) -> tirx.PrimFunc:
        """Return the rewritten kernel."""
        inner = {load.source for _, factors in products_of(self.func) for each in factors for load in loads_of(each)}
        for buffer in [*self.operands, *(inner - set(self.func.params))]:
            self.renewed[buffer] = tirx.decl_buffer(buffer.shape, self.dtype, buffer.name, layout=None)
        callbacks: list[tuple[Any, Callable]] = [
            (tirx.Var, lambda node, _inner: self.renewed.get(node, node)),
            (ir.TensorLoad, self._load),
            (tirx.BufferStore, self._store),
            (s_tir.SBlock, self._block),
        ]
        body = tvm_ffi.structural_mutate(self.func.body, callbacks)
        params = [self.renewed.get(param, param) for param in self.func.params]
        return tirx.PrimFunc(params, body, self.func.ret_type, self.func.attrs)

    def _load(self, node: ir.TensorLoad, inner: Any) -> tirx.Expr:
        indices = inner.default_mutate(node).indices
        load = tirx.BufferLoad(self.renewed.get(node.source, node.source), indices)
        return tirx.Cast(WIDE, load) if node.source in self.renewed else load

    def _store(self, node: tirx.BufferStore, inner: Any) -> tirx.Stmt:
        new = inner.default_mutate(node)
        if node.buffer not in self.renewed:
            return new
        return tirx.BufferStore(self.renewed[node.buffer], self._narrowed(new.value), new.indices)

    def _block(self, node: s_tir.SBlock, inner: Any) -> s_tir.SBlock:
        is_product = bool(_factors(node))
        new = inner.default_mutate(node)
        if not is_product:
            return new
        store = new.body
        total, term = store.value.a, store.value.b
        if isinstance(term, ir.Call):
            exists, product, otherwise = term.args
            term = tirx.if_then_else(exists, self._rounded(product), otherwise)
        else:
            term = self._rounded(term)
        body = tirx.BufferStore(store.buffer, total + term, store.indices)
        return s_tir.SBlock(
            new.iter_vars, new.reads, new.writes, new.name_hint, body, new.init, new.alloc_buffers, new.match_buffers,
            new.annotations,
        )  # fmt: skip

    def _rounded(self, product: tirx.Mul) -> tirx.Expr:
        left, right = (tirx.Cast(WIDE, self._narrowed(factor)) for factor in (product.a, product.b))
        return left * right

    def _narrowed(self, value: tirx.Expr) -> tirx.Expr:
        """Return a float32 value in the narrow type. What was widened is taken as it was."""
        if isinstance(value, tirx.Cast) and str(value.value.ty.dtype) == self.dtype:
            return value.value
        if isinstance(value, ir.Call) and value.op.name == "prim.if_then_else":
            condition, then, otherwise = value.args
            return tirx.if_then_else(condition, self._narrowed(then), self._narrowed(otherwise))
        if isinstance(value, tirx.FloatImm):
            return tirx.const(value.value, self.dtype)
        return tirx.Cast(self.dtype, value)
