"""Prefetch of the next block of a matrix, while a product multiplies one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import tvm
import tvm_ffi
from tvm import IRModule, tirx
from tvm.sym import Analyzer

from ..emit import substituted
from ..extents import divisors
from ..loops import loads_of
from .prefetch import FOR_READING_LATER, LINE, prefetch, with_body

BLOCKS = "pock.blocks"
"""Annotation of the loop over the terms of a block of a matrix B (:func:`.blocks.in_blocks`): tiles of rows, each of
which has such a loop, blocks of a strip, and columns of a strip."""


@tirx.transform.prim_func_pass(opt_level=0, name="pock.PrefetchBlocks")
def prefetch_blocks(func: tirx.PrimFunc, _mod: IRModule, _context: tvm.transform.PassContext) -> tirx.PrimFunc:
    """Prefetch, in loops that are annotated with :data:`BLOCKS`, the next block of what the kernel copies or turns.

    Each tile fetches a part, the lines of one term, or as many, in a round of about as many terms as there are tiles.
    So they come evenly, and do not keep the loads of the product waiting. Behind the last block of a strip comes the
    first one of the next.

    In, out: flat loops, unrolled and vectorised.
    """
    return func.with_body(_visit(func.body, [], {}))


Copies = Mapping[tirx.Buffer, tirx.For]
"""Loops that fill buffers of the kernel's own."""


def _visit(stmt: tirx.Stmt, loops: Sequence[tirx.For], copies: Copies) -> tirx.Stmt:
    """Rewrite a statement within ``loops``."""
    if isinstance(stmt, tirx.For):
        if BLOCKS in stmt.annotations:
            return _fetching(stmt, loops, copies)
        return with_body(stmt, _visit(stmt.body, [*loops, stmt], copies))
    if isinstance(stmt, tirx.AttrStmt):
        return tirx.AttrStmt(stmt.node, stmt.attr_key, stmt.value, _visit(stmt.body, loops, copies))
    if not isinstance(stmt, tirx.SeqStmt):
        return stmt
    here = dict(copies)
    for step in stmt.seq:
        stores: list[tirx.BufferStore] = []
        tvm_ffi.structural_walk(step, (tirx.BufferStore, stores.append))
        here |= {store.buffer: step for store in stores if isinstance(step, tirx.For)}
    return tirx.SeqStmt([_visit(step, loops, here) for step in stmt.seq])


def _fetching(loop: tirx.For, loops: Sequence[tirx.For], copies: Copies) -> tirx.Stmt:
    """Return a loop over the terms of a block, in rounds that each begin with prefetches."""
    tiles, blocks, width = (int(number) for number in loop.annotations[BLOCKS])
    around, var, terms = list(loops), loop.loop_var, int(loop.extent)
    dtype = str(var.ty.dtype)
    tile = around.pop().loop_var if tiles > 1 else tirx.const(0, dtype)
    block = around.pop().loop_var if blocks > 1 else None
    task = around.pop().loop_var
    copied = next(copies[each] for each in _vectors(loop.body) if each in copies and each.scope() == "global")
    if not _ramps(copied):  # turned element by element
        return loop
    length = max(n for n in divisors(terms) if n <= tiles)
    each, inner = tirx.Var("round", dtype), tirx.Var(var.name, dtype)
    unit = tirx.indexdiv((tile * (terms // length) + each) * length, tiles)
    source, at = _place(copied, unit, width, terms)
    place = substituted(at, {task: task + 1})
    if block is not None:
        first = substituted(place, {block: tirx.const(0, dtype)})
        place = tirx.Select(block + 1 < blocks, substituted(at, {block: block + 1}), first)
    fetches = [prefetch(source, place + line, FOR_READING_LATER) for line in range(0, width, LINE)]
    body = substituted(loop.body, {var: each * length + inner})
    part = tirx.For(inner, loop.min, tirx.const(length, dtype), loop.kind, body)
    return tirx.For(each, loop.min, tirx.const(terms // length, dtype), loop.kind, tirx.SeqStmt([*fetches, part]))


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
    elements = {load.source for each in broadcast for load in loads_of(each.value)}  # words of bytes have four loads
    yield from (load.source for load in loads_of(stmt) if load.source not in elements)


def _ramps(stmt: tirx.Stmt) -> list[tvm.ir.TensorLoad]:
    """Return what a statement loads of memory as vectors."""
    return [load for load in loads_of(stmt) if isinstance(load.indices[0], tirx.Ramp)]
