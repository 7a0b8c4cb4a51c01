"""What element-wise operators that Relax lacks compute."""

from __future__ import annotations

from tvm import te, tirx


def hardtanh(x: te.Tensor, *, low: float, high: float) -> te.Tensor:
    """``min(max(x, low), high)``."""
    lower, upper = tirx.const(low, x.dtype), tirx.const(high, x.dtype)
    return te.compute(x.shape, lambda *index: tirx.min(tirx.max(x(*index), lower), upper), name="hardtanh")
