"""Fallback schedule of any kernel: a thread an element, or several threads of a block a sum."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.s_tir.schedule import LoopRV, SBlockRV

from ..decisions import Choices
from ..extents import divisors
from ..kernels.functions import dtype_of, is_float
from ..kernels.reduction import extreme_of, worst
from ..loops import extents_of, is_reduction, split_by_kind
from .traits import GpuTraits

THREADS = (256, 128, 64)
"""Threads of a block, the default first."""
SHARERS = (2, 4, 8, 16, 32, 64, 128, 256)
"""Threads that may share a sum."""


def fallback(sch: s_tir.Schedule, traits: GpuTraits, choices: Choices) -> None:
    """Inline element-wise producers, then bind each other block: a launch each.

    Decisions per block: ``<block>.threads``; ``<block>.together`` of a reduction: the threads that share one sum, 1 for
    a thread a sum. Threads side by side read side by side: terms of one sum, or of the sums of adjacent columns.
    """
    root = sch.get_sblock("root")
    for block in sch.get_child_blocks(root)[:-1]:
        if not is_reduction(sch, block):
            with contextlib.suppress(s_tir.ScheduleError):
                sch.compute_inline(block)
    for block in sch.get_child_blocks(root):
        _keep_unread_results(sch, block)
        bind(sch, block, traits, choices)


def _keep_unread_results(sch: s_tir.Schedule, block: SBlockRV) -> None:
    """Keep in registers what a block computes and nothing reads: the maximum beside its place."""
    own = set(sch.get(sch.get_sblock("root")).alloc_buffers)
    for consumer in sch.get_consumers(block):
        own -= {region.source for region in sch.get(consumer).reads}
    for index, region in enumerate(sch.get(block).writes):
        if region.source in own:
            sch.set_scope(block, index, "local")


def bind(sch: s_tir.Schedule, block: SBlockRV, traits: GpuTraits, choices: Choices) -> None:
    """Bind the loops of a block: spatial ones to blocks and threads, those of a long reduction to threads."""
    if not sch.get_loops(block):  # a number
        sch.bind(sch.add_unit_loop(block), "threadIdx.x")
        return
    spatial, reduced = split_by_kind(sch, block)
    name = sch.get(block).name_hint
    threads = threads_of(f"{name}.threads", traits, choices)
    sums, terms = (math.prod(extents_of(sch, loops)) for loops in (spatial, reduced))
    if not spatial:
        spatial = [sch.add_unit_loop(reduced[0])]
    if reduced:
        sch.reorder(*spatial, *reduced)
    if reduced and is_plain(sch, block):
        # Columns that fill whole groups: where threads share sums, TVM drops the condition on a split axis of sums.
        side_by_side = [n for n in divisors(extents_of(sch, spatial)[-1]) if n <= traits.warp]
        columns = max(side_by_side) if _by_column(sch, block) else 1
        offered = [1, *(count for count in SHARERS if count * columns <= traits.threads)]
        wanted = min(threads // columns, _power(terms)) if shares(sums, terms, traits) else 1
        together = choices.choose(f"{name}.together", offered, max(n for n in offered if n <= wanted))
        if together > 1:
            _share(sch, spatial, reduced, columns, together)
            return
    outer = sch.fuse(*spatial) if len(spatial) > 1 else spatial[0]
    blocks, lane = sch.split(outer, [None, threads])
    sch.bind(blocks, "blockIdx.x")
    sch.bind(lane, "threadIdx.x")
    if reduced:
        sch.decompose_reduction(block, reduced[0])


def threads_of(name: str, traits: GpuTraits, choices: Choices) -> int:
    """Choose the threads of a block."""
    offered = [threads for threads in THREADS if threads <= traits.threads] or [traits.threads]
    return choices.choose(name, offered, offered[0])


def _share(sch: s_tir.Schedule, spatial: list[LoopRV], reduced: list[LoopRV], columns: int, together: int) -> None:
    """Give blocks the sums of adjacent columns, and ``together`` threads each sum, which they add in a fixed order."""
    inner = sch.fuse(*reduced) if len(reduced) > 1 else reduced[0]
    axis = "threadIdx.x"
    if columns > 1:
        outer, column = sch.split(spatial[-1], [None, columns])
        spatial = [*spatial[:-1], outer]
        sch.bind(column, axis)
        axis = "threadIdx.y"
    sch.bind(sch.fuse(*spatial) if len(spatial) > 1 else spatial[0], "blockIdx.x")
    sch.bind(sch.split(inner, [None, together])[1], axis)


def _by_column(sch: s_tir.Schedule, block: SBlockRV) -> bool:
    """Return whether the last axis of the sums is that of the terms as well: neighbours there are columns of sums."""
    stmt = sch.get(block)
    spatial = [each.var for each in stmt.iter_vars if int(each.iter_type) == 0]
    regions = [region.region for region in stmt.reads if len(region.region) > 1]
    return bool(spatial and regions) and all(region[-1].min.same_as(spatial[-1]) for region in regions)


def _power(extent: int) -> int:
    """Return the next power of two."""
    return 1 << (extent - 1).bit_length()


def shares(sums: int, terms: int, traits: GpuTraits) -> bool:
    """Return whether a thread a sum would leave most of the GPU idle, and each sum is long."""
    return terms >= 2 * traits.warp and sums < 4 * traits.warp * traits.cores


def is_plain(sch: s_tir.Schedule, block: SBlockRV) -> bool:
    """Return whether TVM can share a reduction among threads: one result, and a combination that TVM knows."""
    body = sch.get(block).body
    if not isinstance(body, tirx.BufferStore):
        return False
    return isinstance(body.value, tirx.Add | tirx.Mul | tirx.Min | tirx.Max) or _is_extreme(body)


def _is_extreme(store: tirx.BufferStore) -> bool:
    """Return whether a store combines what it overwrites as :func:`schedules.kernels.reduction.extreme_of`."""
    if not isinstance(store.value, tirx.Select):
        return False
    so_far = tirx.BufferLoad(store.buffer, store.indices)
    value = store.value.false_value if is_float(store.value) else store.value.true_value
    return any(tvm_ffi.structural_equal(store.value, extreme_of(so_far, value, least=least)) for least in (False, True))


def _know_extremes() -> None:
    """Let TVM share extrema that keep NaN among threads."""
    register = tvm.get_global_func("s_tir.schedule.RegisterReducer")
    for name, least in (("largest", False), ("smallest", True)):

        def combine(left: Sequence[tirx.Expr], right: Sequence[tirx.Expr], least: bool = least) -> list[tirx.Expr]:
            return [extreme_of(left[0], right[0], least=least)]

        def identity(values: Sequence[tirx.Expr], least: bool = least) -> list[tirx.Expr]:
            return [worst(dtype_of(values[0]), least)]

        register(1, _kept(f"pock.{name}", combine), _kept(f"pock.identity_of_{name}", identity))


def _kept(name: str, function: Callable[..., Any]) -> Any:
    """Return a function of TVM that is never freed: TVM frees its reducers after Python has ended."""
    tvm_ffi.register_global_func(name, function, override=True)
    return tvm.get_global_func(name)


_know_extremes()
