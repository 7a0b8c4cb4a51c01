"""Operators that alias memory: the result lies in the operand, or the operands lie in the result.

(Their kernels serve pipelines whose memory plan does not alias them as :class:`~relay_passes.PlanArena` does.)
"""

from __future__ import annotations

from tvm import relax

from schedules.kernels import indexing

from ..ir import dtype_of, shape_of
from .registry import register_operator


def _part_type(call: relax.Call) -> relax.TensorType:
    rows, *rest = shape_of(call.args[0])
    return relax.TensorType((rows // int(call.attrs["count"]), *rest), dtype_of(call.args[0]))


def _join_type(call: relax.Call) -> relax.TensorType:
    parts = call.args[0].fields
    rows, *rest = shape_of(parts[0])
    return relax.TensorType((rows * len(parts), *rest), dtype_of(parts[0]))


part = register_operator("pock.part", ["x"], _part_type, indexing.part, is_alias=True)
"""``part(x, index=i, count=n)``: part ``i`` of ``n`` equal parts along the first axis."""
join = register_operator("pock.join", ["parts"], _join_type, indexing.join, is_alias=True)
"""``join(tuple)``: concatenates parts of equal shape along the first axis. Each part is written in its place."""
