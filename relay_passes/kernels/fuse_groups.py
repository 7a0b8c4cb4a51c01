"""Fusion of kernels into groups whose operands a device can bind."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import IRModule, relax

LENGTHS = (256, 16, 8, 6, 4, 3, 2, 1)
"""Most kernels of a group, as they are tried: the first is TVM's."""


@tvm.transform.module_pass(opt_level=0, name="FuseGroups")
@dataclass(frozen=True)
class FuseGroups:
    """Group kernels by TVM's ``FuseOps``, so that no group has more than ``most`` operands and results.

    In: functions of ``call_tir`` on annotated kernels. Out: groups of at most ``longest`` kernels, which ``FuseTIR``
    makes kernels of. If one is too wide, all groups become shorter. A kernel that is too wide by itself stays.
    """

    most: int
    longest: int = LENGTHS[0]

    def transform_module(self, mod: IRModule, context: tvm.transform.PassContext) -> IRModule:
        for length in (each for each in LENGTHS if each <= self.longest):
            with tvm.transform.PassContext(
                context.opt_level, config={**context.config, "relax.FuseOps.max_depth": length}
            ):
                grouped = relax.transform.FuseOps()(mod)
            groups = [
                func for func in grouped.functions.values() if "Primitive" in (getattr(func, "attrs", None) or {})
            ]
            if all(_width(group) <= self.most for group in groups):
                break
        return grouped


def _width(group: relax.Function) -> int:
    """Return the operands and results of a group."""
    results = group.ret_ty.fields if isinstance(group.ret_ty, tvm.ir.TupleType) else [group.ret_ty]
    return len(group.params) + len(results)
