"""While a register tile is computed, the next one's rows come to the caches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import pytest
import tvm
import tvm_ffi
from tvm import IRModule, tirx
from tvm.sym import Analyzer

from schedules.cpu.lower import LOWERING
from schedules.cpu.prefetch import AHEAD, prefetch_tiles
from schedules.kernels.conv2d import conv2d, conv2d_weight_gradient
from schedules.kernels.joint_update import product_update
from schedules.kernels.matmul import matmul
from schedules.kernels.update import Layout, sgd
from tests.schedules.kernels import HOST, LLVM, assert_close, call, defined, noise, scheduled

LINE = 16
PLAIN = {"strides": [1, 1], "padding": [0] * 4, "dilation": [1, 1], "groups": 1}
MOMENTUM = {"momentum": 0.9, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0}


@pytest.mark.parametrize(("terms", "columns"), [(144, 24), (17, 33), (64, 96), (960, 16)])
def test_every_line_of_the_next_rows_is_fetched(terms: int, columns: int) -> None:
    x, weight = noise("prefetch", (1 + HOST.traits.cache_bytes // (256 * terms), 8, 8, terms), (1, 1, terms, columns))
    func = scheduled(conv2d, x, weight, **PLAIN)
    ((tiles, loop, fetches),) = walks(flat(func).body)
    tile_rows, tile_columns = rows_and_columns(loop)
    last = columns // tile_columns - 1  # behind it come the next rows
    found = {
        int(Analyzer().simplify(fetched_at(fetch, {tiles.loop_var: last, loop.loop_var: term}))) // LINE
        for fetch in fetches
        for term in range(terms)
    }
    panel = tile_rows * terms
    assert found >= set(range(-(-panel // LINE), 2 * panel // LINE))
    assert found <= set(range(panel // LINE, 2 * panel // LINE + 2))
    expected = x.reshape(-1, terms).astype("float64") @ weight[0, 0].astype("float64")
    assert_close(call(func, x, weight), expected.reshape(*x.shape[:3], columns))


@pytest.mark.parametrize(
    ("shape", "kernel"), [((1, 8, 8, 64), 1), ((64, 8, 8, 128), 3)], ids=["in the second cache", "of several taps"]
)
def test_rows_that_come_by_themselves_are_not_fetched(shape: tuple[int, ...], kernel: int) -> None:
    x, weight = noise("none", shape, (kernel, kernel, shape[-1], 32))
    assert not list(walks(scheduled(conv2d, x, weight, **PLAIN)))


@pytest.mark.parametrize("strides", [1, 2])
def test_stores_of_unrolled_tiles_are_prefetched_ahead(strides: int) -> None:
    options = PLAIN | {"strides": [strides] * 2, "padding": [1] * 4, "groups": 48}
    x, weight = noise("depthwise", (2, 32, 32, 48), (3, 3, 1, 48))
    func = scheduled(conv2d, x, weight, **options)
    stored: list[tirx.BufferStore] = []
    fetched: list[tvm.ir.Call] = []
    body = flat(func).body
    tvm_ffi.structural_walk(body, (tirx.BufferStore, stored.append))
    tvm_ffi.structural_walk(body, (tirx.Evaluate, lambda each: fetched.append(each.value)))
    results = [each.indices[0] for each in stored if each.buffer.shape[0] == 2 * (32 // strides) ** 2 * 48]
    ahead = [str(Analyzer().simplify(ramp.base + AHEAD * ramp.lanes)) for ramp in results]
    assert ahead
    assert [str(Analyzer().simplify(fetched_at(each, {}))) for each in fetched] == ahead


@pytest.mark.parametrize("size", [1, 3], ids=["1x1", "3x3"])
def test_what_a_later_tile_updates_is_fetched(size: int) -> None:
    """Every line of it, while a tile is computed; behind the last tile of a tap, or of a strip, comes the first of the next."""
    shape = (size, size, 64, 256)
    x, dy = noise("update", (1, 6 + size, 6 + size, 64), (1, 7, 7, 256))
    update = sgd(Layout(shape, "float32"), **MOMENTUM, vectors={"rates": 1, "scale": 256})
    gradient = defined(conv2d_weight_gradient, x, dy, **PLAIN, kernel_size=(size, size))
    joint = product_update(gradient, update, 1, sums=True)
    ((tiles, loop, fetches),) = walks(flat(HOST.schedule(joint, {"tile": (1, 1, 8, 32), "pack": False})).body)
    stores = [each for each in tiles.body.seq if isinstance(each, tirx.BufferStore)]

    def line(place: tirx.Expr) -> int:
        """The line of a place in the first tile, or strip, of every loop that has no value."""
        return (
            int(Analyzer().simplify(tvm_ffi.structural_map(place, (tirx.Var, lambda _: tirx.const(0, "int32")))))
            // LINE
        )

    written = {line(each.indices[0].base) for each in stores if each.buffer.shape[0] == math.prod(shape)}

    def apart(tile: int) -> int:
        """The lines from the first tile to another, in the order in which they are computed."""
        strip, row = divmod(tile, int(tiles.extent)) if size == 1 else (0, tile)
        return (row * 8 * 256 + strip * 32) // LINE

    for tile in (0, int(tiles.extent) - 1):
        times = [{tiles.loop_var: tile, loop.loop_var: each} for each in range(int(loop.extent))]
        fetched = {line(fetched_at(fetch, time)) for fetch in fetches for time in times}
        assert fetched in [{line + apart(tile + ahead) for line in written} for ahead in range(1, 9)]
    assert len(written) == 16


@pytest.mark.parametrize("panels", [False, True], ids=["tiles are tasks", "panels"])
def test_what_the_next_tile_updates_is_fetched_in_rounds(panels: bool) -> None:
    """Every line of it and no other, also behind the last tile of a strip and of a panel."""
    rows, columns, terms = 48, 2048, 128
    x, dy = noise("rounds", (terms, rows), (terms, columns))
    update = sgd(Layout((rows, columns), "float32"), **MOMENTUM | {"momentum": 0.0}, vectors={"rates": 1})
    joint = product_update(defined(matmul, x, dy, transpose_a=True, transpose_b=False), update, 1)
    decisions = {"tile": (6, 32), "columns_first": panels}
    decisions |= {"panels": True, "tiles_of_panel": 2, "strips_of_task": 4} if panels else {"parallel": 2}
    body = flat(HOST.schedule(joint, decisions)).body
    ((tiles, rounds, fetches),) = walks(body)
    around = [(each.loop_var, int(each.extent)) for each in loops_of(body) if is_within(tiles, each)]
    stores = [each for each in tiles.body.seq if isinstance(each, tirx.BufferStore)]
    written = [each.indices[0].base for each in stores if each.buffer.shape[0] == rows * columns]

    def lines(number: int) -> tuple[set[int], set[int]]:
        """Record the lines that a tile fetches, and those that it writes, by its number in the order of the loops."""
        values = {}
        for var, extent in reversed(around):
            number, values[var] = number // extent, number % extent
        times = [values | {rounds.loop_var: each} for each in range(int(rounds.extent))]
        fetched = [fetched_at(fetch, time) for fetch in fetches for time in times]
        return lines_of(fetched), lines_of([at(place, values) for place in written])

    count = math.prod(extent for _, extent in around)
    found = [lines(number) for number in range(count)]
    assert count == rows * columns // (6 * 32)
    assert all(fetched == written for (fetched, _), (_, written) in pairwise(found))
    assert len(found[0][0]) == 6 * 32 // LINE


def lines_of(places: list[tirx.Expr]) -> set[int]:
    """The lines of elements."""
    return {int(Analyzer().simplify(place)) // LINE for place in places}


def loops_of(body: tirx.Stmt) -> list[tirx.For]:
    """The loops in a statement, outermost first."""
    loops: list[tirx.For] = []
    tvm_ffi.structural_walk(body, (tirx.For, loops.append))  # innermost first
    return loops[::-1]


def is_within(loop: tirx.For, other: tirx.For) -> bool:
    """Whether a loop is another, or in it."""
    return any(each.loop_var.same_as(loop.loop_var) for each in loops_of(other))


def flat(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """A kernel as flat loops, with prefetches, as they come."""
    until = next(index for index, each in enumerate(LOWERING) if each.same_as(prefetch_tiles))
    mod = tirx.transform.BindTarget(LLVM.with_host(LLVM))(IRModule({"main": func}))
    return tvm.transform.Sequential(LOWERING[: until + 1])(mod)["main"]


def walks(body: tirx.Stmt) -> Iterator[tuple[tirx.For, tirx.For, list[tvm.ir.Call]]]:
    """The loops over tiles, the reductions in them and the prefetches in these."""
    for outer in loops_of(body):
        for inner in outer.body.seq if isinstance(outer.body, tirx.SeqStmt) else []:
            steps = inner.body.seq if isinstance(inner, tirx.For) and isinstance(inner.body, tirx.SeqStmt) else []
            if found := [step.value for step in steps if isinstance(step, tirx.Evaluate)]:
                yield outer, inner, found


def rows_and_columns(loop: tirx.For) -> tuple[int, int]:
    """The extents of a tile, by the elements and the vectors that a term of its reduction reads."""
    elements: dict[str, int] = {}
    vectors: dict[str, int] = {}
    for step in loop.body.seq:
        if isinstance(step, tirx.BufferStore):
            tvm_ffi.structural_walk(step.value, (tvm.ir.TensorLoad, lambda load: note(load, elements, vectors)))
    return len(elements), sum(vectors.values())


def note(load: tvm.ir.TensorLoad, elements: dict[str, int], vectors: dict[str, int]) -> None:
    """Note a load, by its address, under what it reads: an element, or a vector and its lanes."""
    if load.source.scope() == "global":
        place = load.indices[0]
        if isinstance(place, tirx.Ramp):
            vectors[str(place)] = int(place.lanes)
        else:
            elements[str(place)] = 1


def at(place: tirx.Expr, values: dict[tirx.Var, int]) -> tirx.Expr:
    """A place, with the values of loops."""
    return tvm_ffi.structural_map(
        place, (tirx.Var, lambda var: next((tirx.const(n, "int32") for v, n in values.items() if v.same_as(var)), var))
    )


def fetched_at(fetch: tvm.ir.Call, values: dict[tirx.Var, int]) -> tirx.Expr:
    """The element that a prefetch fetches, with the values of loops."""
    return at(fetch.args[0].args[0].indices[0], values)
