"""Joins tensors along an axis, as many at once as a kernel of the target may read."""

from __future__ import annotations

from tvm import relax, topi

from schedules.kernels import OPAQUE
from schedules.target import Target

from ..ir import Expr
from .legalization import legalizes_for_target


@legalizes_for_target("relax.concat")
def concatenate(target: Target, builder: relax.BlockBuilder, call: relax.Call) -> Expr:
    """Lower a concatenation; one of more tensors than a kernel binds becomes several, of groups and then of those."""
    most, axis = target.layouts.arguments - 1, int(call.attrs.axis or 0)
    (given,) = call.args
    count = len(given.ty.fields)
    is_listed = isinstance(given, relax.Tuple)
    parts = [*given.fields] if is_listed else [builder.emit(relax.TupleGetItem(given, at)) for at in range(count)]
    if len(parts) <= most:
        return builder.call_te(topi.concatenate, parts, axis)

    def joined(group: list[Expr]) -> Expr:
        # Fused with their neighbours the groups would be one kernel again.
        return builder.call_te(topi.concatenate, group, axis, primfunc_attrs={"op_pattern": OPAQUE})

    while len(parts) > most:
        groups = [parts[start : start + most] for start in range(0, len(parts), most)]
        parts = [builder.emit(joined(group)) if len(group) > 1 else group[0] for group in groups]
    return joined(parts)
