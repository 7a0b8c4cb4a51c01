"""Legalises operators that sort: TVM's kernels call a library that no program brings along."""

from __future__ import annotations

from tvm import relax

from schedules.kernels import OPAQUE, order

from ..ir import Expr, shape_of
from .legalization import legalizes


@legalizes("relax.argsort")
def _argsort(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    (x,), axis = call.args, int(call.attrs.axis) % len(shape_of(call))
    return _sorted(builder, x, axis, descending=bool(call.attrs.descending), count=shape_of(x)[axis])


@legalizes("relax.topk")
def _topk(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower the positions of the largest or smallest; the values are a gather of them."""
    if call.attrs.ret_type != "indices":
        return call
    (x,), axis = call.args, int(call.attrs.axis) % len(shape_of(call))
    return _sorted(builder, x, axis, descending=bool(call.attrs.largest), count=shape_of(call)[axis])


def _sorted(builder: relax.BlockBuilder, x: Expr, axis: int, *, descending: bool, count: int) -> relax.Call:
    """Emit a kernel that fuses with nothing: it reads each element as often as there are others."""
    return builder.call_te(
        order.argsort,
        x,
        axis=axis,
        descending=descending,
        count=count,
        primfunc_name_hint="argsort",
        primfunc_attrs={"op_pattern": OPAQUE},
    )
