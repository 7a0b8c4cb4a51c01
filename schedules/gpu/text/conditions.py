"""Conditions in vectors, as every dialect computes them."""

from __future__ import annotations

import tvm_ffi
from tvm import tirx
from tvm.ir import TensorLoad


def with_plain_conditions(func: tirx.PrimFunc, dialect: str) -> tirx.PrimFunc:
    """Rewrite ``0 < int(condition)`` to the condition, and leave loops scalar that use conditions as numbers.

    In OpenCL, a comparison of vectors is -1 where it is true, and a selection by a vector asks the sign: TVM takes such
    a condition for 1, and 1 in memory for a condition. WGSL has no ``&&`` and ``||`` of vectors.
    """

    def plain(node: tirx.LT) -> tirx.Expr:
        is_zero = isinstance(node.a, tirx.IntImm) and int(node.a) == 0
        return node.b.value if is_zero and _is_number(node.b) else node

    def scalar(loop: tirx.For) -> tirx.For:
        is_scalar = _has_numbers(loop.body) or (dialect == "webgpu" and _joins_conditions(loop.body))
        if loop.kind != tirx.ForKind.VECTORIZED or not is_scalar:
            return loop
        return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.UNROLLED, loop.body)

    body = tvm_ffi.structural_map(func.body, (tirx.LT, plain))
    return func.with_body(tvm_ffi.structural_map(body, (tirx.For, scalar)))


def _is_number(node: tirx.Expr) -> bool:
    """Return whether an expression is a condition as a number."""
    return isinstance(node, tirx.Cast) and str(node.value.ty.dtype) == "bool"


def _has_numbers(stmt: tirx.Stmt) -> bool:
    """Return whether a statement uses a condition as a number, or reads one from memory."""
    found: list[bool] = []
    tvm_ffi.structural_walk(
        stmt,
        [
            (tirx.Cast, lambda node: found.append(_is_number(node))),
            (TensorLoad, lambda node: found.append(str(node.ty.dtype) == "bool")),
        ],
    )
    return any(found)


def _joins_conditions(stmt: tirx.Stmt) -> bool:
    """Return whether a statement joins conditions on what it reads: they differ from lane to lane."""
    joined: list[tirx.Expr] = []
    tvm_ffi.structural_walk(stmt, [(kind, joined.append) for kind in (tirx.And, tirx.Or, tirx.Not)])
    read: list[TensorLoad] = []
    for each in joined:
        tvm_ffi.structural_walk(each, [(TensorLoad, read.append)])
    return bool(read)
