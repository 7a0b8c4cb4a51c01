"""Blocks and loops of a kernel that is being scheduled: what schedules of every back end ask of them."""

from __future__ import annotations

from collections.abc import Sequence

import tvm_ffi
from tvm import ir, s_tir, tirx
from tvm.s_tir.schedule import LoopRV, SBlockRV


class Unsuited(Exception):
    """Mismatch of a schedule and a kernel: the next rule is tried."""


def extent_of(sch: s_tir.Schedule, loop: LoopRV) -> int:
    """Return the extent of a loop, which must be constant."""
    extent = sch.get(loop).extent
    if not isinstance(extent, tirx.IntImm):
        raise Unsuited("the extent of a loop is not constant")
    return int(extent)


def extents_of(sch: s_tir.Schedule, loops: Sequence[LoopRV]) -> list[int]:
    """Return the extent of each loop."""
    return [extent_of(sch, loop) for loop in loops]


def is_reduction(sch: s_tir.Schedule, block: SBlockRV) -> bool:
    """Return whether a block has a reduction axis."""
    return any(int(iter_var.iter_type) == 2 for iter_var in sch.get(block).iter_vars)


def split_by_kind(sch: s_tir.Schedule, block: SBlockRV) -> tuple[list[LoopRV], list[LoopRV]]:
    """Return the spatial loops and the reduction loops of an unscheduled block."""
    kinds = [int(iter_var.iter_type) for iter_var in sch.get(block).iter_vars]
    loops = sch.get_loops(block)
    if len(loops) != len(kinds) or any(kind not in (0, 2) for kind in kinds):
        raise Unsuited("a block whose loops are not its own")
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == 0]
    return spatial, [loop for loop, kind in zip(loops, kinds, strict=True) if kind == 2]


def factors_of(block: s_tir.SBlock) -> tuple[tirx.Expr, tirx.Expr, tirx.Expr | None] | None:
    """Return the factors of the products that a block sums, and the condition on which there is a term (None: always).
    None if it does anything else."""
    store = block.body
    if not (isinstance(store, tirx.BufferStore) and isinstance(store.value, tirx.Add)):
        return None
    term, exists = store.value.b, None
    if isinstance(term, ir.Call) and term.op.name == "prim.if_then_else":
        exists, term, _ = term.args
    return (term.a, term.b, exists) if isinstance(term, tirx.Mul) else None


def loads_of(expr: tirx.Expr) -> list[ir.TensorLoad]:
    """Return what an expression reads of buffers."""
    found: list[ir.TensorLoad] = []
    tvm_ffi.structural_walk(expr, (ir.TensorLoad, lambda node: found.append(node)))
    return found
