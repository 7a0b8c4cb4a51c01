"""Prefetch of the next block of a matrix, while a product multiplies one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import tvm
import tvm_ffi
from tvm import IRModule, tirx
from tvm.sym import Analyzer

from ..emit import substituted
from ..loops import loads_of
from .prefetch import FOR_READING_LATER, LINE, part_of, prefetch, with_body

BLOCKS = "pock.blocks"
"""Annotation of the loop over the terms of a block of a matrix B (:func:`.blocks.in_blocks`): tiles of rows, each of
which has such a loop, blocks of a strip, and columns of a strip."""


@tirx.transform.prim_func_pass(opt_level=0, name="pock.PrefetchBlocks")
def prefetch_blocks(func: tirx.PrimFunc, _mod: IRModule, _context: tvm.transform.PassContext) -> tirx.PrimFunc:
    """Prefetch, in loops that are annotated with :data:`BLOCKS`, the next block of what the kernel copies or turns.

    Each of T tiles fetches a part: the lines of one term, or as many, in T terms. So they come evenly, and do not keep
    the loads of the product waiting. Behind the last block of a strip comes the first one of the next.

    In, out: flat loops, unrolled and vectorised.
    """
    return func.with_body(_visit(func.body, [], {}))


Copies = Mapping[tirx.Buffer, tirx.For]
"""Loops that fill buffers of the kernel's own."""


def _visit(stmt: tirx.Stmt, loops: Sequence[tirx.For], copies: Copies) -> tirx.Stmt:
    if isinstance(stmt, tirx.For):
        if BLOCKS in stmt.annotations:
            return _fetching(stmt, loops, copies)
        return with_body(stmt, _visit(stmt.body, [*loops, stmt], copies))
    if isinstance(stmt, tirx.AttrStmt):
        return tirx.AttrStmt(stmt.node, stmt.attr_key, stmt.value, _visit(stmt.body, loops, copies))
    if isinstance(stmt, tirx.SeqStmt):
        here = dict(copies)
        for step in stmt.seq:
            if isinstance(step, tirx.For):
                stores: list[tirx.BufferStore] = []
                tvm_ffi.structural_walk(step, (tirx.BufferStore, stores.append))
                here |= {store.buffer: step for store in stores}
        return tirx.SeqStmt([_visit(step, loops, here) for step in stmt.seq])
    return stmt


def _fetching(loop: tirx.For, loops: Sequence[tirx.For], copies: Copies) -> tirx.Stmt:
    """Return a loop over the terms of a block with prefetches of the next one."""
    tiles, blocks, width = (int(number) for number in loop.annotations[BLOCKS])
    around = list(loops)
    dtype = str(loop.loop_var.ty.dtype)
    tile = around.pop().loop_var if tiles > 1 else tirx.const(0, dtype)
    block = around.pop() if blocks > 1 else None
    task = around.pop().loop_var
    terms = int(loop.extent)
    copied = next(copies[source] for source in _vectors(loop.body) if source in copies and source.scope() == "global")
    rounds = terms // tiles
    if rounds == 0:
        return loop

    def fetches(unit: tirx.Expr) -> list[tirx.Stmt]:
        source, at = _place(copied, unit, width, terms)
        following = substituted(at, {task: task + 1})
        if block is not None:
            first = substituted(following, {block.loop_var: tirx.const(0, dtype)})
            inside = substituted(at, {block.loop_var: block.loop_var + 1})
            following = tirx.Select(block.loop_var + 1 < blocks, inside, first)
        return [prefetch(source, following + line, FOR_READING_LATER) for line in range(0, width, LINE)]

    if tiles == 1:
        return with_body(loop, tirx.SeqStmt([*fetches(loop.loop_var), loop.body]))
    each, inner = tirx.Var("round", dtype), tirx.Var(loop.loop_var.name, dtype)
    body = substituted(loop.body, {loop.loop_var: each * tiles + inner})
    part = tirx.For(inner, loop.min, tirx.const(tiles, dtype), loop.kind, body)
    spread = tirx.For(
        each, loop.min, tirx.const(rounds, dtype), loop.kind, tirx.SeqStmt([*fetches(tile * rounds + each), part])
    )
    return tirx.SeqStmt([spread, part_of(loop, rounds * tiles, terms)]) if rounds * tiles < terms else spread


def _place(copied: tirx.For, unit: tirx.Expr, width: int, terms: int) -> tuple[tirx.Buffer, tirx.Expr]:
    """Return where unit ``unit`` of a block lies: ``width`` elements, of one term if they are copied, of one column if
    they are turned."""
    inside: list[tirx.For] = []
    tvm_ffi.structural_walk(copied, (tirx.For, inside.append))
    first, *others = _ramps(copied)
    start = {each.loop_var: tirx.const(0, str(each.loop_var.ty.dtype)) for each in inside}
    if int(copied.extent) == terms:
        return first.source, substituted(first.indices[0].base, start | {copied.loop_var: unit})
    base = substituted(first.indices[0].base, start)
    column = Analyzer().simplify(substituted(others[0].indices[0].base, start) - base)
    place = unit * width
    return first.source, base + tirx.indexdiv(place, terms) * column + tirx.indexmod(place, terms)


def _vectors(stmt: tirx.Stmt) -> Iterator[tirx.Buffer]:
    """Yield the buffers that a loop's body reads, but not those of which it makes an element all lanes of a vector."""
    broadcast: list[tirx.Broadcast] = []
    tvm_ffi.structural_walk(stmt, (tirx.Broadcast, broadcast.append))
    elements = {each.value.source for each in broadcast if isinstance(each.value, tvm.ir.TensorLoad)}
    yield from (load.source for load in loads_of(stmt) if load.source not in elements)


def _ramps(stmt: tirx.Stmt) -> list[tvm.ir.TensorLoad]:
    """Return what a statement loads of memory as vectors."""
    return [load for load in loads_of(stmt) if isinstance(load.indices[0], tirx.Ramp)]
