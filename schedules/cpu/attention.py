"""Attention and its gradients (:mod:`schedules.kernels.attention`), whose scores stay in a core's cache.

A task goes through the queries of one head, block by block, with the scores of a block against all keys in scratch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tvm import s_tir, tirx
from tvm.s_tir.schedule import SBlockRV
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from ..decisions import Choices
from ..kernels.attention import element, inverse_of
from .attention_head import Head
from .emit import buffer, loop
from .traits import CpuTraits


def forward(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, choices: Choices) -> tirx.PrimFunc:
    """Write attention anew.

    Decisions: ``rows``: queries of a block; ``split``: whether a task has one block, not all of a head.
    """
    func = sch.mod["main"]
    q, k, v, *masks, out, statistics = func.params
    head = Head(sch, block, out, q, k, masks, traits, choices, held=1)
    safe = bool(sch.get(block).annotations["safe"])
    with _written() as builder, head.task(choices.choose("split", (False, True), head.is_split)):
        keys, scores = head.packed(k), head.weights("scores")
        inverse = buffer("inverse", head.rows, head.sums)

        def write(first: tirx.Expr, count: int) -> None:
            reach = head.reach(first, count)

            def store_score(row: tirx.Expr, key: tirx.Expr, product: tirx.Expr) -> None:
                score = head.scoring.score(product, (*head.batch, first + row, key))
                T.buffer_store(scores, score, [row * head.pitch + key])

            head.against_keys(q, keys, first, count, reach, store_score)
            with loop(count) as row:
                largest, total = head.softmax(scores, row, reach)
                T.buffer_store(inverse, inverse_of(total, safe=safe), [row])
                for index, value in enumerate((largest, inverse[row])):
                    T.buffer_store(statistics, value, [*head.batch, first + row, index])

            def store(row: tirx.Expr, column: tirx.Expr, total: tirx.Expr) -> None:
                T.buffer_store(out, total * inverse[row], [*head.batch, first + row, column])

            head.of_queries(scores, v, count, reach, store)

        head.write_blocks(write)
    return func.with_body(builder.get().body)


def gradients(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, choices: Choices) -> tirx.PrimFunc:
    """Write the gradients of queries, keys and values anew, in one kernel.

    Decisions: ``rows``: queries of a block.
    """
    q, k, v, *masks, statistics, grad, of_q, of_k, of_v = sch.mod["main"].params
    head = Head(sch, block, of_q, q, k, masks, traits, choices, held=2)
    return _gradients(sch, head, _Operands(q, k, v, statistics, grad, None), of_q, of_k, of_v)


def query_gradient(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, choices: Choices) -> tirx.PrimFunc:
    """Write the gradient of queries anew. Decisions: as of :func:`gradients`."""
    q, k, v, *masks, statistics, grad, along, out = sch.mod["main"].params
    head = Head(sch, block, out, q, k, masks, traits, choices, held=2)
    return _gradients(sch, head, _Operands(q, k, v, statistics, grad, along), of_q=out)


def key_gradient(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, choices: Choices) -> tirx.PrimFunc:
    """Write the gradient of keys anew. Decisions: as of :func:`gradients`."""
    q, k, v, *masks, statistics, grad, along, out = sch.mod["main"].params
    head = Head(sch, block, out, q, k, masks, traits, choices, held=2)
    return _gradients(sch, head, _Operands(q, k, v, statistics, grad, along), of_k=out)


def value_gradient(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, choices: Choices) -> tirx.PrimFunc:
    """Write the gradient of values anew. Decisions: as of :func:`gradients`."""
    q, k, *masks, statistics, grad, out = sch.mod["main"].params
    head = Head(sch, block, out, q, k, masks, traits, choices, held=1)
    return _gradients(sch, head, _Operands(q, k, None, statistics, grad, None), of_v=out)


class _Operands(NamedTuple):
    """Operands of attention's gradients. ``v``: None for that of the values. ``along``: None to compute it here."""

    q: tirx.Buffer
    k: tirx.Buffer
    v: tirx.Buffer | None
    statistics: tirx.Buffer
    grad: tirx.Buffer
    along: tirx.Buffer | None


def _gradients(
    sch: s_tir.Schedule,
    head: Head,
    operands: _Operands,
    of_q: tirx.Buffer | None = None,
    of_k: tirx.Buffer | None = None,
    of_v: tirx.Buffer | None = None,
) -> tirx.PrimFunc:
    """Write the gradients that have a buffer."""
    q, k, v, statistics, grad, along = operands
    scale = tirx.const(head.scoring.scale, head.sums)
    with _written() as builder, head.task(split=False):
        keys, powers = head.packed(k), head.weights("powers")
        if v is not None:
            values, changes = head.packed(v), head.weights("changes")
        for result in (of_k, of_v):
            if result is not None:
                head.clear(result)

        def write(first: tirx.Expr, count: int) -> None:
            reach = head.reach(first, count)

            def store_power(row: tirx.Expr, key: tirx.Expr, product: tirx.Expr) -> None:
                power = head.scoring.probability(product, statistics, (*head.batch, first + row, key))
                T.buffer_store(powers, power, [row * head.pitch + key])

            def store_coming(row: tirx.Expr, key: tirx.Expr, product: tirx.Expr) -> None:
                T.buffer_store(changes, product, [row * head.pitch + key])

            def store_changes(row: tirx.Expr) -> None:
                query = (*head.batch, first + row)
                total = (
                    element(along, query) if along is not None else head.sum_of_products(powers, changes, row, reach)
                )

                def store_change(key: tirx.Expr) -> None:
                    place = row * head.pitch + key
                    change = head.scoring.gradient(powers[place] * (changes[place] - total), (*query, key))
                    T.buffer_store(changes, change * scale, [place])

                head.for_keys(reach, store_change)

            def store(row: tirx.Expr, column: tirx.Expr, total: tirx.Expr) -> None:
                T.buffer_store(of_q, total, [*head.batch, first + row, column])

            head.against_keys(q, keys, first, count, reach, store_power)
            if v is not None:
                head.against_keys(grad, values, first, count, reach, store_coming)
                with loop(count) as row:
                    store_changes(row)
            if of_q is not None:
                head.of_queries(changes, k, count, reach, store)
            if of_k is not None:
                head.add_to_keys(of_k, changes, q, first, count, reach)
            if of_v is not None:
                head.add_to_keys(of_v, powers, grad, first, count, reach)

        head.write_blocks(write)
    return sch.mod["main"].with_body(builder.get().body)


@contextmanager
def _written() -> Iterator[IRBuilder]:
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        yield builder
