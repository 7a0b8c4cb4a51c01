"""Prefetch of a register tile's destination before the tile is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import tvm
from tvm import IRModule, tirx


@tirx.transform.prim_func_pass(opt_level=0, name="pock.PrefetchResults")
def prefetch_results(func: tirx.PrimFunc, _mod: IRModule, _context: tvm.transform.PassContext) -> tirx.PrimFunc:
    """Prefetch, before a loop that reduces into registers, what the stores after it write.

    A store to an uncached line waits for the line to be fetched. A prefetch before the loop overlaps with the
    reduction. In, out: flat loops, unrolled and vectorised.
    """
    return func.with_body(_visit(func.body))


def _visit(stmt: tirx.Stmt) -> tirx.Stmt:
    if isinstance(stmt, tirx.For):
        body = _visit(stmt.body)
        return tirx.For(
            stmt.loop_var, stmt.min, stmt.extent, stmt.kind, body, stmt.thread_binding, stmt.annotations, stmt.step
        )
    if isinstance(stmt, tirx.AttrStmt):
        return tirx.AttrStmt(stmt.node, stmt.attr_key, stmt.value, _visit(stmt.body))
    if not isinstance(stmt, tirx.SeqStmt):
        return stmt
    steps: list[tirx.Stmt] = []
    for index, step in enumerate(stmt.seq):
        if isinstance(step, tirx.For):
            steps += _prefetches(stmt.seq[index + 1 :])
            step = _visit(step)
        steps.append(step)
    return tirx.SeqStmt(steps)


def _prefetches(behind: Sequence[tirx.Stmt]) -> list[tirx.Stmt]:
    """Return a prefetch for each vector that the leading stores of ``behind`` write, or read from a buffer as large."""
    found: list[tirx.Stmt] = []
    for stmt in behind:
        if not isinstance(stmt, tirx.BufferStore):
            break
        if len(stmt.indices) == 1 and isinstance(stmt.indices[0], tirx.Ramp) and stmt.buffer.scope() == "global":
            found.append(_prefetch(stmt.buffer, stmt.indices[0], FOR_WRITING))
            wide = [load for load in _loads(stmt.value) if _is_as_large(load.source, stmt.buffer)]
            found += [_prefetch(load.source, load.indices[0], FOR_READING) for load in wide]
    return found


FOR_READING, FOR_WRITING = (0, 3, 1), (1, 3, 1)  # arguments of llvm.prefetch: read or write, all caches, data


def _prefetch(buffer: tirx.Buffer, place: tirx.Expr, how: tuple[int, int, int]) -> tirx.Stmt:
    address = tirx.address_of(tirx.BufferLoad(buffer, [place.base]))
    return tirx.Evaluate(tirx.call_intrin("void", "tirx.prefetch", address, *how))


def _is_as_large(buffer: tirx.Buffer, other: tirx.Buffer) -> bool:
    return buffer.scope() == "global" and int(buffer.shape[0]) >= int(other.shape[0])


def _loads(expr: tirx.Expr) -> Iterator[tvm.ir.TensorLoad]:
    """Yield the vector loads of an expression."""
    if isinstance(expr, tvm.ir.TensorLoad):
        if len(expr.indices) == 1 and isinstance(expr.indices[0], tirx.Ramp):
            yield expr
        return
    children = [getattr(expr, name, None) for name in ("a", "b", "value", "condition", "true_value", "false_value")]
    children += list(expr.args) if isinstance(expr, tvm.ir.Call) else []
    for child in children:
        if isinstance(child, tvm.ir.Expr):
            yield from _loads(child)
