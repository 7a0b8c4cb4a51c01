"""Operators that draw random numbers. Their definitions are in ``schedules/kernels/random.py``."""

from __future__ import annotations

import numpy as np
from tvm import relax

from schedules.kernels import random

from .record import Kind
from .registry import InferType, register_operator


def _drawn_type(dtype: str) -> InferType:
    return lambda call: relax.TensorType((int(call.attrs["count"]),), dtype)


keep = register_operator("pock.keep", ["random"], _drawn_type("bool"), random.keep, is_flat=True)
uniform = register_operator("pock.uniform", ["random"], _drawn_type("float32"), random.uniform, is_flat=True)
normal = register_operator("pock.normal", ["random"], _drawn_type("float32"), random.normal, is_flat=True)
drop = register_operator("pock.drop", ["x", "kept"], lambda call: call.args[0].ty, random.drop, kind=Kind.ELEMENTWISE)
RANDOM = "pock.random"
"""Name of the input that draws read: uint32 [1, 5], the words of the seed and of the step's number, and the number of
the part of the batch."""
NOTHING = np.zeros((1, 5), "uint32")
"""Operand of draws until :class:`~relay_passes.canonical.draw_numbers.DrawNumbers` gives them an input."""
DRAWS = frozenset({"pock.keep", "pock.uniform", "pock.normal"})
"""Operators whose first operand is the input of :class:`~relay_passes.canonical.draw_numbers.DrawNumbers`."""
