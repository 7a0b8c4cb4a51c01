"""Micro-kernels, written as loops: each does one thing, over and over.

All take the same two operands: ``data``, int32 or float32 [n], and ``result``, of the same type [cores * 1024]. What
they compute goes into ``result``, or LLVM would leave it out.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from relay_passes.kernels.schedule_kernels import SCHEDULED

APART = 1024
"""Elements between the results of two cores: a page, so that they share no cache line."""
Body = Callable[[tirx.Buffer, tirx.Buffer, tirx.Expr], None]
"""Emits what one core does: its operands are ``data``, ``result`` and the core's first element of ``result``."""


def kernel(name: str, body: Body, *, size: int, dtype: str, cores: int, workers: int = 1) -> tirx.PrimFunc:
    """Build a kernel of ``data`` [size]. With several workers each runs ``body``, at the same time."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"global_symbol": name, "tirx.noalias": True, "tirx.is_scheduled": True, SCHEDULED: True})
        data, result = T.arg("data", T.Buffer((size,), dtype)), T.arg("result", T.Buffer((cores * APART,), dtype))
        with T.sblock("root"):
            if workers == 1:
                body(data, result, tirx.const(0, "int32"))
            else:
                with T.parallel(workers) as worker:
                    body(data, result, worker * APART)
    return builder.get()


def multiply_adds(chains: int, lanes: int, rounds: int) -> Body:
    """``chains`` vectors of sums, each of ``rounds`` dependent multiply-adds."""

    def body(data: tirx.Buffer, result: tirx.Buffer, at: tirx.Expr) -> None:
        factor, term = (T.bind(data[tirx.Ramp(n * lanes, 1, lanes)]) for n in (0, 1))
        sums = _vectors(chains, lanes, "float32")
        with T.serial(rounds):
            for n in range(chains):
                T.buffer_store(sums, sums[_lanes(n, lanes)] * factor + term, [_lanes(n, lanes)])
        _store_all(sums, chains, lanes, result, at)

    return body


def cycles(rounds: int) -> Body:
    """``2 * UNROLLED * rounds`` dependent integer operations of one cycle each."""

    def body(data: tirx.Buffer, result: tirx.Buffer, at: tirx.Expr) -> None:
        mask, step = (T.bind(data[n]) for n in (0, 1))
        value = T.alloc_buffer((1,), "int32", scope="local")
        T.buffer_store(value, data[2], [0])
        with T.serial(rounds):
            for _ in range(UNROLLED):
                T.buffer_store(value, (value[0] ^ mask) + step, [0])
        T.buffer_store(result, value[0], [at])

    return body


UNROLLED = 16
SUMS = 8
"""Vectors of sums that loads go to: their chains are shorter than the loads take."""


def loads(elements: int, lanes: int, rounds: int, *, broadcast: bool = False) -> Body:
    """Reads ``elements`` numbers in order, ``rounds`` times: vectors, or single ones that go to all lanes."""

    def body(data: tirx.Buffer, result: tirx.Buffer, at: tirx.Expr) -> None:
        sums, step = _vectors(SUMS, lanes, "int32"), 1 if broadcast else lanes
        first = tirx.indexdiv(at, APART) * elements
        with T.serial(rounds), T.serial(elements // (SUMS * step)) as block:
            for n in range(SUMS):
                place = first + (block * SUMS + n) * step
                read = tirx.Broadcast(data[place], lanes) if broadcast else data[tirx.Ramp(place, 1, lanes)]
                T.buffer_store(sums, sums[_lanes(n, lanes)] ^ read, [_lanes(n, lanes)])
        _store_all(sums, SUMS, lanes, result, at)

    return body


def chase(steps: int) -> Body:
    """``steps`` dependent loads: each tells the index of the next. A worker starts at ``result[at]``."""

    def body(data: tirx.Buffer, result: tirx.Buffer, at: tirx.Expr) -> None:
        place = T.alloc_buffer((1,), "int32", scope="local")
        T.buffer_store(place, result[at], [0])
        with T.serial(steps):
            T.buffer_store(place, data[place[0]], [0])
        T.buffer_store(result, place[0], [at])

    return body


def copy(elements: int, lanes: int, rounds: int) -> Body:
    """Copies ``elements`` numbers of ``data`` to as many right behind them, ``rounds`` times."""

    def body(data: tirx.Buffer, _result: tirx.Buffer, at: tirx.Expr) -> None:
        first = tirx.indexdiv(at, APART) * 2 * elements
        with T.serial(rounds), T.serial(elements // lanes) as n:
            value = T.bind(data[tirx.Ramp(first + n * lanes, 1, lanes)])
            T.buffer_store(data, value, [tirx.Ramp(first + elements + n * lanes, 1, lanes)])

    return body


def touch() -> Body:
    """Does next to nothing: what a parallel loop of it takes is the cost of starting threads."""

    def body(_data: tirx.Buffer, result: tirx.Buffer, at: tirx.Expr) -> None:
        T.buffer_store(result, result[at] + 1, [at])

    return body


def _vectors(count: int, lanes: int, dtype: str) -> tirx.Buffer:
    """Allocate vectors in registers, all zero."""
    sums = T.alloc_buffer((count * lanes,), dtype, scope="local")
    for n in range(count):
        T.buffer_store(sums, tirx.Broadcast(tirx.const(0, dtype), lanes), [_lanes(n, lanes)])
    return sums


def _lanes(n: int, lanes: int) -> tirx.Expr:
    return tirx.Ramp(n * lanes, 1, lanes)


def _store_all(sums: tirx.Buffer, count: int, lanes: int, result: tirx.Buffer, at: tirx.Expr) -> None:
    for n in range(count):
        T.buffer_store(result, sums[_lanes(n, lanes)], [tirx.Ramp(at + n * lanes, 1, lanes)])
