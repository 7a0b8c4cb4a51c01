"""Vectors of which some lanes lie behind the end of a row."""

from __future__ import annotations

from collections.abc import Iterator

import tvm
import tvm_ffi
from tvm import IRModule, ir, tirx
from tvm.sym import Analyzer
from tvm.tirx.analysis import undefined_vars

from ..emit import substituted
from .prefetch import with_body

PREDICATION = {"tirx.enable_buffer_level_predication": True}
"""Configuration of TVM's passes by which vectors are loaded and stored under a mask."""
COUNTER = "int32"
"""Type of the loops whose vectors may have a mask: of others (in kernels on int64 buffers) TVM writes code that LLVM
refuses."""


@tirx.transform.prim_func_pass(opt_level=0, name="pock.MaskVectors")
def mask_vectors(func: tirx.PrimFunc, _mod: IRModule, _context: tvm.transform.PassContext) -> tirx.PrimFunc:
    """Let a loop that will be a vector store under a mask where the end of a row comes before its last lane.

    A store whose lanes are compared with one number, or whose value is chosen by that, becomes two: of all lanes where
    all are inside, which needs no comparison, and of some, in the form that TVM vectorises under a mask.

    In, out: flat loops, not vectorised yet.
    """
    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.For, _masked)))


def may_mask(func: tirx.PrimFunc) -> bool:
    """Return whether all loops of a function count in the type that masks know."""
    loops: list[tirx.For] = []
    tvm_ffi.structural_walk(func.body, (tirx.For, loops.append))
    return all(str(loop.loop_var.ty.dtype) == COUNTER for loop in loops)


def _masked(loop: tirx.For) -> tirx.Stmt:
    if loop.kind != tirx.ForKind.VECTORIZED or str(loop.loop_var.ty.dtype) != COUNTER:
        return loop
    conditions: list[tirx.Expr] = []
    body = loop.body
    while isinstance(body, tirx.IfThenElse) and body.else_case is None:
        conditions += _conjuncts(body.condition)
        body = body.then_case
    if not isinstance(body, tirx.BufferStore):
        return loop
    value, other = body.value, None
    if isinstance(value, ir.Call) and value.op.name == "prim.if_then_else":
        conditions.append(value.args[0])
        value, other = value.args[1:]
    by_lane = [each for each in conditions if _varies(each, loop.loop_var)]
    if len(by_lane) != 1 or not _is_end(by_lane[0], loop.loop_var):
        return loop
    store = tirx.BufferStore(body.buffer, value, body.indices)
    some: tirx.Stmt = with_body(loop, tirx.IfThenElse(by_lane[0], store, None))
    if other is not None:
        some = tirx.SeqStmt([with_body(loop, tirx.BufferStore(body.buffer, other, body.indices)), some])
    last = substituted(by_lane[0], {loop.loop_var: loop.extent - 1})
    masked: tirx.Stmt = tirx.IfThenElse(last, with_body(loop, store), some)
    for each in conditions:
        if not each.same_as(by_lane[0]):
            masked = tirx.IfThenElse(each, masked, None)
    return masked


def _is_end(condition: tirx.Expr, lane: tirx.Var) -> bool:
    """Return whether a condition says that a place, which grows by one from lane to lane, lies before an end."""
    if not isinstance(condition, tirx.LT) or _varies(condition.b, lane):
        return False
    step = Analyzer().simplify(substituted(condition.a, {lane: lane + 1}) - condition.a)
    return isinstance(step, tirx.IntImm) and int(step) == 1


def _conjuncts(condition: tirx.Expr) -> Iterator[tirx.Expr]:
    if isinstance(condition, tirx.And):
        yield from _conjuncts(condition.a)
        yield from _conjuncts(condition.b)
    else:
        yield condition


def _varies(expr: tirx.Expr, var: tirx.Var) -> bool:
    return any(var.same_as(each) for each in undefined_vars(expr, []))
