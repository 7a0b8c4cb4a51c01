"""Placement of a kernel's own buffers: register tiles on the stack, all others in memory that the caller plans."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import tvm
import tvm_ffi
from tvm import s_tir, tirx

ALIGNMENT = 64  # bytes: one cache line, and one AVX-512 vector
ON_STACK = {"disable_lower_builtin": tirx.const(1, "int32")}
"""Annotation that keeps ``tirx.transform.LowerTVMBuiltin`` from turning a buffer into a heap allocation."""
MOST_ON_STACK = 1024
"""Bytes of a buffer of scope ``global`` that may lie on the stack, as in TVM (``runtime::kMaxStackAlloca``). One of
scope ``local`` always does: it is a register tile."""


def needs_scratch(stmt: tirx.Stmt) -> bool:
    """Return whether a scheduled kernel's body may have a buffer of its own that is no register tile."""
    own = list(stmt.alloc_buffers) if isinstance(stmt, s_tir.SBlock) else []
    own += [stmt.buffer] if isinstance(stmt, tirx.AllocBuffer) else []
    return any(buffer.scope() != "local" for buffer in own) or any(map(needs_scratch, _inside(stmt)))


def with_tiles_on_stack(body: tirx.Stmt) -> tirx.Stmt:
    """Keep the register tiles among the buffers that a kernel allocates on the stack, whatever their size."""

    def kept(alloc: tirx.AllocBuffer) -> tirx.AllocBuffer:
        is_tile = alloc.buffer.scope() == "local"
        return tirx.AllocBuffer(alloc.buffer, annotations=ON_STACK) if is_tile else alloc

    return tvm_ffi.structural_map(body, (tirx.AllocBuffer, kept))


def _inside(stmt: tirx.Stmt) -> list[tirx.Stmt]:
    """Return the statements directly inside a statement."""
    if isinstance(stmt, tirx.SeqStmt):
        return list(stmt.seq)
    if isinstance(stmt, tirx.IfThenElse):
        return [stmt.then_case] if stmt.else_case is None else [stmt.then_case, stmt.else_case]
    if isinstance(stmt, s_tir.SBlockRealize):
        return [stmt.block]
    body = getattr(stmt, "body", None)
    return [] if body is None else [body]


def place_scratch(
    body: tirx.Stmt, scratch: tirx.Expr, workers: int, alignment: int = ALIGNMENT
) -> tuple[tirx.Stmt, int]:
    """Place the buffers that a kernel allocates, and return its new body with the bytes that ``scratch`` must have.

    In, out: flat loops. A buffer outside parallel loops lies at a fixed offset behind the address ``scratch``. A
    parallel loop with buffers inside is split among at most ``workers`` workers, in equal runs of iterations as TVM's
    runtime does, and each worker has a slot of its own. Parallel loops run one after the other and share the slots.
    With one worker they become serial: nothing has to launch them. Buffers begin at multiples of ``alignment`` bytes.
    """
    fixed = _offsets(_large(body, in_parallel=False), alignment)
    placement = _Placement(scratch, workers, fixed, alignment)
    placed = placement.visit(body, dict(fixed), None)
    return placed, placement.size


class _Placement:
    """Rewriter of one kernel, and the bytes of scratch that it needs so far."""

    def __init__(self, scratch: tirx.Expr, workers: int, fixed: Mapping[tirx.Var, int], alignment: int) -> None:
        self.scratch, self.workers, self.alignment = scratch, workers, alignment
        self.fixed = self.size = _end(fixed, alignment)
        self.parallel = tirx.ForKind.SERIAL if workers == 1 else tirx.ForKind.PARALLEL

    def visit(self, stmt: tirx.Stmt, offsets: Mapping[tirx.Var, int], slot: tirx.Expr | None) -> tirx.Stmt:
        """Rewrite a statement. ``offsets`` are those of the large buffers, behind ``slot`` in a parallel loop."""
        if isinstance(stmt, tirx.SeqStmt):
            return tirx.SeqStmt([self.visit(each, offsets, slot) for each in stmt.seq])
        if isinstance(stmt, tirx.AllocBuffer):
            if stmt.buffer not in offsets:
                return tirx.AllocBuffer(stmt.buffer, annotations=ON_STACK)
            offset = offsets[stmt.buffer] if slot is None else slot + offsets[stmt.buffer]
            return tirx.DeclBuffer(stmt.buffer, data=tirx.handle_add_byte_offset(self.scratch, offset))
        if isinstance(stmt, tirx.For):
            inside = _offsets(_large(stmt.body, in_parallel=True), self.alignment) if _is_parallel(stmt) else {}
            if inside:
                return self._shared_out(stmt, inside)
            kind = self.parallel if _is_parallel(stmt) else stmt.kind
            return _loop(stmt, kind, self.visit(stmt.body, offsets, slot))
        if isinstance(stmt, tirx.AttrStmt):
            return tirx.AttrStmt(stmt.node, stmt.attr_key, stmt.value, self.visit(stmt.body, offsets, slot))
        if isinstance(stmt, tirx.IfThenElse):
            other = stmt.else_case and self.visit(stmt.else_case, offsets, slot)
            return tirx.IfThenElse(stmt.condition, self.visit(stmt.then_case, offsets, slot), other)
        if isinstance(stmt, tirx.While):
            return tirx.While(stmt.condition, self.visit(stmt.body, offsets, slot))
        return stmt

    def _shared_out(self, loop: tirx.For, inside: Mapping[tirx.Var, int]) -> tirx.For:
        """Split a parallel loop among workers, each with a slot of the bytes that ``inside`` takes."""
        extent, stride = int(loop.extent), _end(inside, self.alignment)
        step = math.ceil(extent / min(self.workers, extent))
        count = math.ceil(extent / step)
        self.size = max(self.size, self.fixed + count * stride)
        worker = tirx.Var("worker", "int32")
        body = self.visit(loop.body, inside, self.fixed + worker * stride)
        first, rest = worker * step, step if extent % step == 0 else tirx.min(step, extent - worker * step)
        run = tirx.For(loop.loop_var, loop.min + first, rest, tirx.ForKind.SERIAL, body)
        return tirx.For(worker, 0, count, self.parallel, run)


def _loop(loop: tirx.For, kind: tirx.ForKind, body: tirx.Stmt) -> tirx.For:
    return tirx.For(loop.loop_var, loop.min, loop.extent, kind, body, loop.thread_binding, loop.annotations, loop.step)


def _large(stmt: tirx.Stmt, *, in_parallel: bool) -> Iterator[tirx.Var]:
    """Yield the buffers that are too large for the stack: those inside parallel loops only if ``in_parallel``."""
    if isinstance(stmt, tirx.AllocBuffer) and stmt.buffer.scope() != "local" and _bytes(stmt.buffer) >= MOST_ON_STACK:
        yield stmt.buffer
    if in_parallel or not _is_parallel(stmt):
        for each in _inside(stmt):
            yield from _large(each, in_parallel=in_parallel)


def _is_parallel(stmt: tirx.Stmt) -> bool:
    return isinstance(stmt, tirx.For) and stmt.kind == tirx.ForKind.PARALLEL


def _offsets(buffers: Iterator[tirx.Var], alignment: int) -> dict[tirx.Var, int]:
    """Return aligned offsets of buffers that lie one after the other."""
    offsets: dict[tirx.Var, int] = {}
    for buffer in buffers:
        offsets[buffer] = _end(offsets, alignment)
    return offsets


def _end(offsets: Mapping[tirx.Var, int], alignment: int) -> int:
    return max((offset + -(-_bytes(buffer) // alignment) * alignment for buffer, offset in offsets.items()), default=0)


def _bytes(buffer: tirx.Var) -> int:
    return math.prod(int(extent) for extent in buffer.shape) * tvm.DataType(buffer.dtype).itemsize
