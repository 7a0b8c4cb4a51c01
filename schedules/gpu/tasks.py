"""Kernels that come as loops: their parallel iterations become threads."""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx

THREADS = 64
"""Threads of a block."""


def bind_tasks(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Give each iteration of a parallel loop a thread, and what stands outside of any a launch of one thread.

    The order of what one iteration computes stays: results do not depend on the number of threads.
    """

    def bound(stmt: tirx.Stmt) -> tirx.Stmt:
        if isinstance(stmt, tirx.SeqStmt):
            return tirx.SeqStmt([bound(each) for each in stmt.seq])
        if isinstance(stmt, (tirx.AllocBuffer, tirx.DeclBuffer)):
            return stmt
        if isinstance(stmt, tirx.For) and stmt.kind == tirx.ForKind.PARALLEL:
            return _threads(stmt)
        if isinstance(stmt, s_tir.SBlockRealize):
            block = stmt.block
            inside = s_tir.SBlock(
                block.iter_vars, block.reads, block.writes, block.name_hint, bound(block.body), block.init,
                block.alloc_buffers, block.match_buffers, block.annotations,
            )  # fmt: skip
            return s_tir.SBlockRealize(stmt.iter_values, stmt.predicate, inside)
        one = tirx.Var("one", "int32")
        return _threads(tirx.For(one, 0, 1, tirx.ForKind.SERIAL, stmt))

    return func.with_body(bound(func.body))


def _threads(loop: tirx.For) -> tirx.Stmt:
    """Return a loop with an iteration a thread."""
    dtype = str(loop.loop_var.ty.dtype)
    block, lane = tirx.Var("block", dtype), tirx.Var("lane", dtype)
    extent = loop.extent
    threads = min(THREADS, int(extent)) if isinstance(extent, tirx.IntImm) else THREADS
    blocks = tirx.ceildiv(extent, threads)
    at = block * threads + lane
    body: tirx.Stmt = tirx.SeqStmt([tirx.Bind(loop.loop_var, loop.min + at), loop.body])
    if not (isinstance(extent, tirx.IntImm) and int(extent) % threads == 0):
        body = tirx.IfThenElse(at < extent, body, None)
    for var, size, axis in ((lane, tirx.const(threads, dtype), "threadIdx.x"), (block, blocks, "blockIdx.x")):
        thread = tirx.IterVar(tvm.ir.Range(0, size), tirx.Var(axis, dtype), tirx.IterVar.ThreadIndex, axis)
        body = tirx.For(var, 0, size, tirx.ForKind.THREAD_BINDING, body, thread)
    return body
