"""Transposes that are kernels of their own."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te


def transpose(x: te.Tensor, *, axes: Sequence[int]) -> te.Tensor:
    """Compute ``Y = X.transpose(axes)``."""
    source = {axis: position for position, axis in enumerate(axes)}
    return te.compute(
        [x.shape[axis] for axis in axes],
        lambda *at: x(*(at[source[axis]] for axis in range(len(axes)))),
        name="transpose",
        attrs={"schedule_rule": "pock.transpose", "axes": list(axes)},
    )
