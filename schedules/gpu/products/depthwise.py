"""Depthwise convolution and its gradients: threads that share nothing but caches, and those that share a sum."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tvm import s_tir, tirx
from tvm.s_tir.schedule import SBlockRV
from tvm.script.ir_builder import tirx as T

from ...decisions import Choices
from ...emit import substituted, unrolled, vector, where
from ...loops import Unsuited
from ..emit import bound, lanes_along, local, reads_along, shared, store_sum, synchronise, written
from ..traits import GpuTraits
from .contraction import INDEX, Axis, Contraction, Env, contraction_of, extents_of, flat, places

THREADS = (128, 64, 256)
"""Threads of a block, the default first."""
ROWS = (1, 2, 3, 4, 5, 7, 8, 9)
"""Results of a thread: adjacent pixels, which share inputs, or taps, which share the gradient of an output."""
SHARERS = (1, 4, 8, 16, 32)
"""Threads of a block that share a sum: at least as many as a vector has lanes, for which there is a thread each."""
SPLITS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Blocks that share a sum."""
UNROLLED = 9
"""Most taps that are written out."""


def depthwise(sch: s_tir.Schedule, block: SBlockRV, traits: GpuTraits, choices: Choices) -> tirx.PrimFunc:
    """Write ``Y[n, h, w, c] = sum_{r, s} X[n, .., c] * W[r, s, c]``, or its data gradient, anew: a few pixels a thread.

    Decisions: ``threads``, ``rows``.
    """
    contraction = _contraction(sch, block)
    batch, rows, _ = extents_of(contraction)
    vectors = batch * rows // _lanes(contraction)
    enough = [count for count in (4, 2) if vectors // count >= ENOUGH * traits.warp * traits.cores]
    own = choices.choose("rows", ROWS, enough[0] if enough else 1)
    return _written(sch, contraction, traits, choices, own, 1, 1)


def weight_gradient(sch: s_tir.Schedule, block: SBlockRV, traits: GpuTraits, choices: Choices) -> tirx.PrimFunc:
    """Write ``dW[.., r, s, 0, c] = sum X[n, .., c] * dY[n, h, w, c]`` anew: a few taps a thread, and several threads
    and blocks a sum. Each block adds its threads' parts in shared memory; another launch adds the blocks', in order.

    Decisions: ``threads``, ``rows``, ``sharers``: threads of a block that share a sum, and ``splits``: blocks.
    """
    contraction = _contraction(sch, block)
    batch, rows, _ = extents_of(contraction)
    terms = flat(contraction.reduced)
    if not isinstance(terms, int):
        raise Unsuited("the number of terms differs from sum to sum")
    own = choices.choose("rows", ROWS, next((count for count in (9, 7, 5, 3) if rows % count == 0), 1))
    tasks = batch // _lanes(contraction) * math.ceil(rows / own)
    able = [count for count in SHARERS if count == 1 or LEAST_TERMS * count <= terms]
    sharers = choices.choose("sharers", able, max(count for count in able if count <= THREADS[0] // NEIGHBOURS))
    want = ENOUGH * traits.warp * traits.cores / (tasks * sharers)
    able = [count for count in SPLITS if count == 1 or LEAST_TERMS * sharers * count <= terms]
    splits = choices.choose("splits", able, next((count for count in able if count >= want), able[-1]))
    return _written(sch, contraction, traits, choices, own, sharers, splits)


ENOUGH = 8
"""Warps with which a core hides the latency of memory."""
NEIGHBOURS = 8
"""Threads that read adjacent vectors, 128 bytes together."""
LEAST_TERMS = 16
"""Fewest terms of a thread's part of a sum, for which it pays to share."""


def _contraction(sch: s_tir.Schedule, block: SBlockRV) -> Contraction:
    contraction = contraction_of(sch, block, by_group=False)
    if contraction.columns:
        raise Unsuited("a channel of the output reads several of the input")
    return contraction


def _lanes(contraction: Contraction) -> int:
    """Return the channels of a vector."""
    axes = contraction.batch
    if not (axes and reads_along(contraction.left, axes) and reads_along(contraction.right, axes)):
        return 1
    return lanes_along(contraction, axes)


def _written(
    sch: s_tir.Schedule,
    contraction: Contraction,
    traits: GpuTraits,
    choices: Choices,
    own: int,
    sharers: int,
    splits: int,
) -> tirx.PrimFunc:
    offered = [threads for threads in THREADS if threads <= traits.threads]
    threads = choices.choose("threads", offered, offered[0])
    body = Direct(contraction, _lanes(contraction), own, threads, sharers, splits).written()
    return sch.mod["main"].with_body(body)


@dataclass(frozen=True)
class Direct:
    """A product of which each thread computes ``own`` results by ``lanes`` channels from memory: nothing is worth
    sharing but sums."""

    contraction: Contraction
    lanes: int
    own: int
    threads: int
    """Threads of a block, of which ``sharers`` share a sum."""
    sharers: int
    splits: int
    """Blocks that share a sum."""

    def written(self) -> tirx.Stmt:
        """Return the loops: one launch, or two where blocks share sums."""
        return written(self.contraction, self.splits, self._launch)

    def _launch(self, parts: tirx.Buffer | None) -> None:
        """Write the launch of all threads. Channels are the fastest, so that neighbours read adjacent vectors."""
        contraction, lanes, own = self.contraction, self.lanes, self.own
        batch, rows, _ = extents_of(contraction)
        vectors, groups, side = batch // lanes, math.ceil(rows / own), self.threads // self.sharers
        blocks = math.ceil(vectors * groups / side)
        with bound(blocks * self.splits, "blockIdx.x") as block, bound(self.threads, "threadIdx.x") as thread:
            task = tirx.floormod(block, blocks) * side + tirx.floormod(thread, side)
            split, part = tirx.floordiv(block, blocks), tirx.floordiv(thread, side)
            image = tirx.floormod(task, vectors) * lanes
            first = tirx.floordiv(task, vectors) * own
            env = places(image, contraction.batch)
            sums = local("sums", own * lanes, self.contraction.dtype)
            with unrolled(own * lanes) as at:
                T.buffer_store(sums, tirx.const(0, self.contraction.dtype), [at])
            is_task = task < vectors * groups if blocks * side > vectors * groups else None
            with where(is_task), self._terms(split * self.sharers + part, env) as (at, exists), where(exists):
                self._multiply(sums, first, {**env, **at})
            if self.sharers > 1:
                self._gather(sums, thread, tirx.floormod(block, blocks) * side, parts, split)
                return
            with (
                unrolled(own) as number,
                where(tirx.all(task < vectors * groups, first + number < rows)),
                vector(lanes) as lane,
            ):
                self._store(sums[number * lanes + lane], image, first + number, lane, parts, split)

    def _store(
        self,
        total: tirx.Expr,
        image: tirx.Expr,
        row: tirx.Expr,
        lane: tirx.Expr,
        parts: tirx.Buffer | None,
        split: tirx.Expr,
    ) -> None:
        """Write the store of a sum of one channel: to the epilogue, or to ``parts``."""
        contraction = self.contraction
        if parts is not None:
            T.buffer_store(parts, total, [split, (image + lane) * extents_of(contraction)[1] + row])
            return
        at = {**self._on_lane(places(image, contraction.batch), lane), **places(row, contraction.rows)}
        store_sum(contraction, total, at)

    def _on_lane(self, env: Env, lane: tirx.Expr) -> dict[tirx.Var, tirx.Expr]:
        """Return places with the channel of a lane."""
        at = dict(env)
        if self.lanes > 1:
            at[self.contraction.batch[-1].var] += lane
        return at

    @contextmanager
    def _terms(self, part: tirx.Expr, env: Env) -> Iterator[tuple[dict[tirx.Var, tirx.Expr], tirx.Expr | None]]:
        """Loops over the terms of a thread: all of them, or every n-th. Yields their places, and whether there is
        a term."""
        axes = [Axis(axis.var, substituted(axis.extent, env)) for axis in self.contraction.reduced]
        parts = self.sharers * self.splits
        terms = flat(axes)
        if parts > 1:
            with T.serial(tirx.const(math.ceil(terms / parts), INDEX)) as number:
                term = number * parts + part
                yield places(term, axes), None if terms % parts == 0 else term < terms
            return
        with ExitStack() as loops:
            short = isinstance(terms, int) and terms <= UNROLLED
            at = {
                axis.var: loops.enter_context(
                    unrolled(int(axis.extent))
                    if short
                    else T.serial(tirx.const(axis.extent, INDEX) if isinstance(axis.extent, int) else axis.extent)
                )
                for axis in axes
            }
            yield at, None

    def _multiply(self, sums: tirx.Buffer, first: tirx.Expr, env: Env) -> None:
        """Write the multiply-adds of one term."""
        contraction, lanes = self.contraction, self.lanes
        _, rows, _ = extents_of(contraction)
        right, left = (
            local("right", lanes, self.contraction.dtype),
            local("left", self.own * lanes, self.contraction.dtype),
        )
        with vector(lanes) as lane:
            T.buffer_store(right, substituted(contraction.right, self._on_lane(env, lane)), [lane])
        with unrolled(self.own) as number:
            row = first + number
            with vector(lanes) as lane:
                at = {**self._on_lane(env, lane), **places(row, contraction.rows)}
                value = tirx.if_then_else(
                    row < rows, substituted(contraction.left, at), tirx.const(0, self.contraction.dtype)
                )
                T.buffer_store(left, value, [number * lanes + lane])
        with unrolled(self.own) as number, unrolled(lanes) as lane:
            at = number * lanes + lane
            T.buffer_store(sums, sums[at] + left[at] * right[lane], [at])

    def _gather(
        self, sums: tirx.Buffer, thread: tirx.Expr, first: tirx.Expr, parts: tirx.Buffer | None, split: tirx.Expr
    ) -> None:
        """Write the addition of what the threads of a block have summed, in order, and its stores. ``first``: the
        block's first task."""
        lanes, side = self.lanes, self.threads // self.sharers
        batch, rows, _ = extents_of(self.contraction)
        vectors = batch // lanes
        memory, total = (
            shared("of_threads", self.threads * lanes, self.contraction.dtype),
            local("total", 1, self.contraction.dtype),
        )
        task, lane = first + tirx.floordiv(thread, lanes), tirx.floormod(thread, lanes)
        image = tirx.floormod(task, vectors) * lanes
        with unrolled(self.own) as number:
            with vector(lanes) as each:
                T.buffer_store(memory, sums[number * lanes + each], [thread * lanes + each])
            synchronise()
            row = tirx.floordiv(task, vectors) * self.own + number
            with where(tirx.all(thread < side * lanes, task < vectors * math.ceil(rows / self.own), row < rows)):
                T.buffer_store(total, tirx.const(0, self.contraction.dtype), [0])
                with T.serial(tirx.const(self.sharers, INDEX), unroll=True) as sharer:
                    T.buffer_store(total, total[0] + memory[sharer * (side * lanes) + thread], [0])
                self._store(total[0], image, row, lane, parts, split)
            synchronise()
