"""Prefetch of what a register tile writes, and of what the next one reads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import tvm
import tvm_ffi
from tvm import IRModule, tirx
from tvm.sym import Analyzer

from ..emit import substituted
from ..extents import divisors
from .traits import CpuTraits, traits_of

FLOAT = 4
LINE = 16
"""float32 elements of a cache line."""
FIRST_CACHE = 32 * 1024
"""Bytes of the first cache: a panel of at most half of it is fetched there, a larger one into the second."""
AHEAD, AHEAD_IN_MEMORY = 16, 4
"""Vectors along a row that an unrolled tile prefetches ahead: of results that the third cache may hold, and of larger
ones. From measurements of depthwise convolutions on Zen 5: at batch 1, by 16 they are 1.1 to 1.9 times as fast as by 4,
and by 32 no faster; results of 13 to 15 MB, at batch 8, are 1.1 to 1.25 times as fast by 4."""
MANY_LINES = 24
"""Most lines that are prefetched at once before a loop. More fill the queue of what a core waits for, and the loop's
own loads wait behind them."""
LINES_BETWEEN = 4
"""Lines that are prefetched before each part of a loop, where they are more."""
ROUNDS_BETWEEN = 6
"""Fewest iterations of a part."""
TERMS_OF_ROUND = 2
"""Fewest iterations of a loop that updates a matrix from one prefetch to the next."""
AWAITED = 1000
"""Vectors that a core multiplies and adds, at least, from a prefetch for a later tile to that tile."""
SHARE_OF_LOOP = 3 / 4
"""Share of a loop's iterations within which all is prefetched: what comes last is there when the loop ends."""
Views = dict[tirx.Buffer, tirx.Buffer]
"""Buffers that views show."""


@tirx.transform.prim_func_pass(opt_level=0, name="pock.PrefetchTiles")
def prefetch_tiles(func: tirx.PrimFunc, _mod: IRModule, _context: tvm.transform.PassContext) -> tirx.PrimFunc:
    """Prefetch around a loop that reduces into registers.

    Before the loop: what the stores after it write, and what they read of buffers as large. A store to an uncached line
    waits for the line to be fetched; this overlaps with the reduction. A loop before many stores is split, with a few
    prefetches before each part. One before stores that update a matrix is split into rounds, if it has enough
    iterations, with a prefetch each, for the next tile: from measurements on Zen 5, weights in no cache, this is 1.03
    to 1.15 times as fast with SGD, and up to 1.24 times with momentum. Of nested loops, such as a convolution's, the
    outer one has a few in each iteration, for a later tile: from measurements on Zen 5, all of them before the loops
    take 1.1 to 1.7 times as long.

    Within the loop: the next tile's rows of the first operand, if they are adjacent and the operand is larger than the
    second cache. A tile reads many rows at once, which no hardware prefetcher follows: products that read 15 to 45 MB
    become 1.5 to 2.2 times as fast by it.

    Where the whole reduction is unrolled, as in a depthwise convolution, it is too short to wait for memory: the stores
    of tiles further on are prefetched, along the rows, of which each tile writes several.

    In, out: flat loops, unrolled and vectorised.
    """
    traits = traits_of(func.attrs["target"])
    if not traits.prefetches:
        return func
    views: Views = {}
    tvm_ffi.structural_walk(func.body, (tirx.DeclBuffer, lambda each: views.update({each.buffer: each.data.args[0]})))
    return func.with_body(_visit(func.body, [], traits, views))


def _visit(stmt: tirx.Stmt, loops: Sequence[tirx.For], traits: CpuTraits, views: Views) -> tirx.Stmt:
    """Rewrite a statement within ``loops``, of which the last is over tiles."""
    if isinstance(stmt, tirx.For):
        return with_body(stmt, _visit(stmt.body, [*loops, stmt], traits, views))
    if isinstance(stmt, tirx.AttrStmt):
        return tirx.AttrStmt(stmt.node, stmt.attr_key, stmt.value, _visit(stmt.body, loops, traits, views))
    if not isinstance(stmt, tirx.SeqStmt):
        return stmt
    if not any(isinstance(step, tirx.For) for step in stmt.seq):
        sums = any(isinstance(step, tirx.BufferStore) and step.buffer.scope() == "local" for step in stmt.seq)
        stores = [each for each in _stores_of_vectors(stmt.seq) if _bytes(each.buffer) > FIRST_CACHE]
        is_cached = max((_bytes(each.buffer) for each in stores), default=0) <= traits.cached_bytes
        ahead = AHEAD if is_cached else AHEAD_IN_MEMORY
        return tirx.SeqStmt([*_prefetches(stores, views, ahead=ahead), *stmt.seq]) if sums else stmt
    steps: list[tirx.Stmt] = []
    for index, step in enumerate(stmt.seq):
        if isinstance(step, tirx.For):
            after = stmt.seq[index + 1 :]
            behind = [*_straight(after)]
            stores = _stores_of_vectors(behind)
            bound = [each.value for each in behind if isinstance(each, tirx.Bind)]
            rows = _rows(step, loops[-1], traits.cache_bytes) if stores and loops else []
            fetched = _prefetches(stores, views, bound)
            rounds = _in_rounds(step, len(fetched)) if loops and not rows and _updates(stores, views) else None
            if rounds is not None:
                steps += _fetching(rounds, fetched, _later(loops, 1))
            elif loops and len(fetched) > MANY_LINES and isinstance(step.body, tirx.For):
                later = _later(loops, math.ceil(AWAITED / max(1, _work(step))))
                steps += _fetching(step, fetched, later)
            else:
                step = with_body(step, tirx.SeqStmt([*rows, step.body])) if rows else _visit(step, loops, traits, views)
                steps += _spread(fetched, step)
        else:
            steps.append(step)
    return tirx.SeqStmt(steps)


def _straight(stmts: Iterable[tirx.Stmt]) -> Iterator[tirx.BufferStore | tirx.Bind]:
    """Yield stores and bound values up to the first other statement. Where some lanes are stored under a mask, or none:
    the store of all."""
    for stmt in stmts:
        while isinstance(stmt, tirx.IfThenElse):
            stmt = stmt.then_case
        if not isinstance(stmt, tirx.BufferStore | tirx.Bind):
            return
        yield stmt


def _spread(prefetches: list[tirx.Stmt], loop: tirx.For) -> list[tirx.Stmt]:
    """Return a loop behind its prefetches; if these are many, in parts, with some before each."""
    extent = int(loop.extent) if isinstance(loop.extent, tirx.IntImm) else 0
    used = int(SHARE_OF_LOOP * extent)
    count = min(len(prefetches) // LINES_BETWEEN, used // ROUNDS_BETWEEN)
    if len(prefetches) <= MANY_LINES or loop.kind != tirx.ForKind.SERIAL or count < 2:
        return [*prefetches, loop]
    bounds = [*(part * used // count for part in range(count)), extent]
    steps: list[tirx.Stmt] = []
    for part in range(count):
        steps += prefetches[part * len(prefetches) // count : (part + 1) * len(prefetches) // count]
        steps.append(part_of(loop, bounds[part], bounds[part + 1]))
    return steps


def _updates(stores: Sequence[tirx.BufferStore], views: Views) -> bool:
    """Return whether stores read memory that they write."""
    written = {views.get(store.buffer, store.buffer) for store in stores}
    return any(views.get(load.source, load.source) in written for store in stores for load in _loads(store.value))


def _in_rounds(loop: tirx.For, lines: int) -> tirx.For | None:
    """Return a loop as one of at least ``lines`` rounds; None if that leaves too little for a round."""
    if loop.kind != tirx.ForKind.SERIAL or isinstance(loop.body, tirx.For) or not isinstance(loop.extent, tirx.IntImm):
        return None
    extent, dtype = int(loop.extent), str(loop.loop_var.ty.dtype)
    length = max((n for n in divisors(extent) if n * lines <= extent), default=1)
    if length < TERMS_OF_ROUND:
        return None
    each, inner = tirx.Var("round", dtype), tirx.Var(loop.loop_var.name, dtype)
    body = substituted(loop.body, {loop.loop_var: each * length + inner})
    part = tirx.For(inner, loop.min, tirx.const(length, dtype), loop.kind, body)
    return tirx.For(each, loop.min, tirx.const(extent // length, dtype), loop.kind, part)


def _later(loops: Sequence[tirx.For], ahead: int) -> dict[tirx.Var, tirx.Expr]:
    """Return the place so many tiles later: behind the last iteration of a loop comes the next of the one around it."""
    later: dict[tirx.Var, tirx.Expr] = {}
    place: tirx.Expr = tirx.const(ahead, str(loops[-1].loop_var.ty.dtype))
    for loop in reversed(loops):
        place = loop.loop_var + place
        if loop.kind != tirx.ForKind.SERIAL:
            return later | {loop.loop_var: place}
        later[loop.loop_var] = tirx.floormod(place, loop.extent)
        place = tirx.floordiv(place, loop.extent)
    return later


def _fetching(loop: tirx.For, prefetches: Sequence[tirx.Stmt], later: Mapping[tirx.Var, tirx.Expr]) -> list[tirx.Stmt]:
    """Return nested loops with a share of the prefetches, for a tile that comes ``later``, in each iteration of the
    outer one. Those of places that are in no regular order come before it."""
    by_buffer: dict[tirx.Buffer, list[tirx.Stmt]] = {}
    for each in prefetches:
        by_buffer.setdefault(each.value.args[0].args[0].source, []).append(each)
    before: list[tirx.Stmt] = []
    inside: list[tirx.Stmt] = []
    for buffer, calls in by_buffer.items():
        first, *how = calls[0].value.args
        grid = _grid([call.value.args[0].args[0].indices[0] for call in calls])
        if grid is None:
            before += calls
            continue
        start = substituted(first.args[0].indices[0], later)
        arguments = (int(how[0]), int(how[1]), int(how[2]))
        share = math.ceil(grid.places / int(loop.extent))
        for part in range(share):
            number = tirx.min(loop.loop_var * share + part, grid.places - 1)
            row, column = tirx.floordiv(number, grid.across), tirx.floormod(number, grid.across)
            inside.append(prefetch(buffer, start + row * grid.pitch + column * grid.step, arguments))
    return [*before, with_body(loop, tirx.SeqStmt([*inside, loop.body])) if inside else loop]


class _Grid(NamedTuple):
    """Places in equal rows: how many there are, how many in a row, and the elements between neighbours, and between
    rows."""

    places: int
    across: int
    step: int
    pitch: int


def _grid(places: Sequence[tirx.Expr]) -> _Grid | None:
    """Return the grid that places are, from the first on; None if they are none."""
    analyzer = Analyzer()
    apart = [analyzer.simplify(place - places[0]) for place in places]
    if not all(isinstance(each, tirx.IntImm) for each in apart):
        return None
    offsets = sorted({int(each) for each in apart})
    step = offsets[1] if len(offsets) > 1 else 0
    across = next((at for at, offset in enumerate(offsets) if offset != at * step), len(offsets))
    pitch = offsets[across] if across < len(offsets) else 0
    whole = [row * pitch + column * step for row in range(len(offsets) // across) for column in range(across)]
    return _Grid(len(offsets), across, step, pitch) if offsets == whole else None


def _work(loop: tirx.Stmt) -> int:
    """Return the vectors that loops, one in the other, store."""
    return int(loop.extent) * _work(loop.body) if isinstance(loop, tirx.For) else len(_stores(loop))


def part_of(loop: tirx.For, first: int, end: int) -> tirx.For:
    """Return the iterations of a loop from ``first`` to ``end``."""
    dtype = str(loop.loop_var.ty.dtype)
    var = tirx.Var(loop.loop_var.name, dtype)
    body = substituted(loop.body, {loop.loop_var: var + tirx.const(first, dtype)})
    return tirx.For(var, loop.min, tirx.const(end - first, dtype), loop.kind, body)


def with_body(loop: tirx.For, body: tirx.Stmt) -> tirx.For:
    """Return a loop with another body."""
    return tirx.For(
        loop.loop_var, loop.min, loop.extent, loop.kind, body, loop.thread_binding, loop.annotations, loop.step
    )


def _stores_of_vectors(stmts: Iterable[tirx.Stmt]) -> list[tirx.BufferStore]:
    """Return the stores of vectors to memory."""
    stores = [stmt for stmt in stmts if isinstance(stmt, tirx.BufferStore)]
    return [each for each in stores if isinstance(each.indices[0], tirx.Ramp) and each.buffer.scope() == "global"]


def _prefetches(
    stores: Sequence[tirx.BufferStore], views: Views, bound: Sequence[tirx.Expr] = (), ahead: int = 0
) -> list[tirx.Stmt]:
    """Return a prefetch for each vector that stores write, or that they, or values ``bound`` before, read from a buffer
    as large; or for the vector that lies so many vectors ahead. What is read of memory that is written lies where it is
    written."""
    if not stores:
        return []
    written = {views.get(store.buffer, store.buffer) for store in stores}
    values = [*(store.value for store in stores), *bound]
    largest = max((store.buffer for store in stores), key=_bytes)
    stores = [store for store in stores if _is_as_large(store.buffer, largest)]
    wide = [load for value in values for load in _loads(value) if _is_as_large(load.source, largest)]
    places = [(store.buffer, store.indices[0], FOR_WRITING) for store in stores]
    places += [
        (load.source, load.indices[0], FOR_READING)
        for load in wide
        if views.get(load.source, load.source) not in written
    ]
    return [prefetch(buffer, at.base + ahead * at.lanes, how) for buffer, at, how in places]


def _rows(loop: tirx.For, tiles: tirx.For, cache: int) -> list[tirx.Stmt]:
    """Return, for the body of a reduction, prefetches that walk over the next tile's rows of the first operand, which
    the loop reads element by element. Empty unless the rows are adjacent, and the operand larger than ``cache``."""
    loads = [load for store in _stores(loop.body) for load in _elements(store.value)]
    if not loads or any(not load.source.same_as(loads[0].source) for load in loads):
        return []
    operand, place, analyzer = loads[0].source, loads[0].indices[0], Analyzer()
    if operand.scope() != "global" or _bytes(operand) <= cache:
        return []
    step = analyzer.simplify(substituted(place, {loop.loop_var: loop.loop_var + 1}) - place)
    offsets = [analyzer.simplify(load.indices[0] - place) for load in loads]
    if not all(isinstance(distance, tirx.IntImm) for distance in (step, *offsets)):
        return []
    terms, starts = int(loop.extent), {int(offset) for offset in offsets}
    rows = len(starts)
    if int(step) != 1 or starts != set(range(0, rows * terms, terms)):
        return []
    how = FOR_READING if FLOAT * rows * terms <= FIRST_CACHE // 2 else FOR_READING_LATER
    first = substituted(place, {loop.loop_var: loop.min})
    at = substituted(first, {tiles.loop_var: tiles.loop_var + 1}) + loop.loop_var * rows
    walks = math.ceil(rows / LINE)
    return [prefetch(operand, at + walk * rows // walks, how) for walk in range(walks)]


def _stores(stmt: tirx.Stmt) -> list[tirx.BufferStore]:
    """Return the stores of a loop's body; none if it has other statements."""
    steps = list(stmt.seq) if isinstance(stmt, tirx.SeqStmt) else [stmt]
    return steps if all(isinstance(step, tirx.BufferStore) for step in steps) else []


FOR_READING, FOR_READING_LATER, FOR_WRITING = (0, 3, 1), (0, 2, 1), (1, 3, 1)
"""Arguments of llvm.prefetch: read or write; all caches, or all but the first; data."""


def prefetch(buffer: tirx.Buffer, place: tirx.Expr, how: tuple[int, int, int]) -> tirx.Stmt:
    """Return a prefetch of the line of an element. ``how``: :data:`FOR_READING` or its neighbours."""
    address = tirx.address_of(tirx.BufferLoad(buffer, [place]))
    return tirx.Evaluate(tirx.call_intrin("void", "tirx.prefetch", address, *how))


def _bytes(buffer: tirx.Buffer) -> int:
    return FLOAT * math.prod(map(int, buffer.shape))


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


def _elements(expr: tirx.Expr) -> list[tvm.ir.TensorLoad]:
    """Return the loads of single elements that become all lanes of a vector."""
    found: list[tirx.Broadcast] = []
    tvm_ffi.structural_walk(expr, (tirx.Broadcast, found.append))
    return [each.value for each in found if isinstance(each.value, tvm.ir.TensorLoad)]
