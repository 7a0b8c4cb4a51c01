"""Schedules the kernels of a module that TVM's own pipelines build."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tvm
from tvm import IRModule, s_tir, tirx

from schedules.decisions import DEFAULTS, DecisionError, Decisions
from schedules.kernels import OPAQUE
from schedules.loops import Unsuited, factors_of, is_reduction
from schedules.target import Target

from ..errors import PassError

DecisionsOf = Callable[[tirx.PrimFunc], Decisions]
"""Decisions for the schedule of a kernel, by its definition."""
SCHEDULED = "pock.scheduled"
"""Attribute of a kernel that :class:`ScheduleKernels` has scheduled."""


def by_default(_func: tirx.PrimFunc) -> Decisions:
    """Leave every choice of a schedule at its default."""
    return DEFAULTS


@tvm.transform.module_pass(opt_level=0, name="ScheduleKernels")
@dataclass(frozen=True)
class ScheduleKernels:
    """Schedule every kernel that the target has a schedule for.

    In: PrimFuncs. Out: the same functions; those that were scheduled carry the attributes ``pock.scheduled`` and TVM's
    ``tirx.is_scheduled``, and fuse with nothing any more. A kernel that came scheduled, or whose shape is symbolic,
    stays as it is, for TVM's own schedules.

    Raises
    ------
    PassError
        ``decisions_of`` returned decisions that a kernel's schedule does not offer.
    """

    target: Target
    decisions_of: DecisionsOf = by_default

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        functions = {var: self._scheduled(var.name_hint, func) for var, func in mod.functions.items()}
        return IRModule(functions, attrs=mod.attrs)

    def _scheduled(self, name: str, func: tvm.ir.BaseFunc) -> tvm.ir.BaseFunc:
        if not isinstance(func, tirx.PrimFunc) or "tirx.is_scheduled" in func.attrs or not _is_static(func):
            return func
        func = with_known_products(func)
        try:
            scheduled = self.target.schedule(func, self.decisions_of(func))
        except (Unsuited, s_tir.ScheduleError):
            return func
        except DecisionError as error:
            raise PassError(f"the decisions for the kernel {name} do not fit its schedule: {error}") from error
        if scheduled.same_as(func):
            return func
        return scheduled.with_attrs({SCHEDULED: True, "tirx.is_scheduled": True, "op_pattern": OPAQUE})


def _is_static(func: tirx.PrimFunc) -> bool:
    buffers = [param for param in func.params if hasattr(param, "shape")]
    return len(buffers) == len(func.params) and all(
        isinstance(extent, tirx.IntImm) for buffer in buffers for extent in buffer.shape
    )


def with_known_products(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Name the rule of each matrix product in a kernel of another front end: a block that sums products of two
    operands, each of which has an axis of the result to itself."""
    if func.body.block.name_hint != "root":
        return func
    sch = s_tir.Schedule(IRModule({"main": func}))
    found = [block for block in sch.get_child_blocks(sch.get_sblock("root")) if _is_product(sch, block)]
    for block in found:
        sch.annotate(block, "schedule_rule", "pock.matmul")
    return sch.mod["main"].with_attrs(func.attrs) if found else func


def _is_product(sch: s_tir.Schedule, block: s_tir.schedule.SBlockRV) -> bool:
    stmt = sch.get(block)
    if "schedule_rule" in stmt.annotations or not is_reduction(sch, block):
        return False
    factors = factors_of(stmt)
    if factors is None or factors[2] is not None:
        return False
    left, right, _ = factors
    if not (isinstance(left, tvm.ir.TensorLoad) and isinstance(right, tvm.ir.TensorLoad)):
        return False
    axes = [each.var for each in stmt.iter_vars if int(each.iter_type) == 0]
    of_left, of_right = ({at for at in axes if any(at.same_as(n) for n in load.indices)} for load in (left, right))
    return bool(of_left - of_right) and bool(of_right - of_left)
