"""Operands of a kernel that is measured: their memory, their values, and whether two schedules left the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..memory import ALIGNMENT, aligned

GUARD = 256
"""Bytes between operands that no kernel may write."""
PATTERN = 0xA5
"""Value of guards' bytes. As a number it is none that a sum would leave."""
HOSTILE = (math.nan, math.inf, -math.inf, 0.0, 1e4, -1e4)
"""Values that spread over some operands: a schedule must pass them on as the default does."""
TOLERANCE = 1e-4
"""Largest difference of a float32 result, relative to the largest result: what another order of a sum's terms may
change, and some 1000 times the spacing of numbers. A term too few of 10^6 changes more."""
FLIPPED = 1e-3
"""Largest share of integers that may differ: signs, masks and positions of numbers that differ by rounding."""


class Operand(NamedTuple):
    """Shape and dtype of an operand or a result."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Memory:
    """One allocation for a kernel's operands and results, with guards between them."""

    def __init__(self, operands: Sequence[Operand]) -> None:
        self.operands = operands
        self._offsets, end = [], GUARD
        for each in operands:
            self._offsets.append(end)
            end += math.ceil((each.nbytes + GUARD) / ALIGNMENT) * ALIGNMENT
        self._bytes = aligned((end,), "uint8")
        self._bytes[:] = PATTERN

    @property
    def addresses(self) -> list[int]:
        """Addresses of the operands."""
        return [self._bytes.ctypes.data + offset for offset in self._offsets]

    def arrays(self) -> list[np.ndarray]:
        """Return the operands, as views."""
        return [
            self._bytes[offset : offset + each.nbytes].view(each.dtype).reshape(each.shape)
            for offset, each in zip(self._offsets, self.operands, strict=True)
        ]

    def fill(self, values: Sequence[np.ndarray]) -> None:
        """Copy values into the operands."""
        for array, value in zip(self.arrays(), values, strict=True):
            array[...] = value

    def is_intact(self) -> bool:
        """Return whether nothing was written between the operands."""
        ends = [0, *(offset + each.nbytes for offset, each in zip(self._offsets, self.operands, strict=True))]
        guards = zip(ends, [*self._offsets, len(self._bytes)], strict=True)
        return all((self._bytes[end:start] == PATTERN).all() for end, start in guards)


def values_of(operands: Sequence[Operand], rng: np.random.Generator, *, hostile: bool) -> list[np.ndarray]:
    """Draw values for a kernel's operands: normal numbers, or with some :data:`HOSTILE` ones among them.

    Wide integers are zeros, since they may be positions in another operand; bytes are bits of masks.
    """
    values = []
    for shape, dtype in operands:
        if dtype in ("bool", "uint8", "int8"):
            values.append(rng.integers(0, 2 if dtype == "bool" else 128, shape).astype(dtype))
        elif "int" in dtype:
            values.append(np.zeros(shape, dtype))
        else:
            array = rng.standard_normal(shape).astype(dtype)
            if hostile:
                flat = array.reshape(-1)
                at = rng.integers(0, flat.size, min(2 * len(HOSTILE), flat.size))
                flat[at] = np.resize(HOSTILE, at.size)
            values.append(array)
    return values


def difference(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> str:
    """Say how results differ from those of the default schedule by more than another order of sums explains; empty if
    they do not."""
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        what = f"operand {number}"
        if one.dtype.kind in "biu":
            share = np.count_nonzero(one != other) / max(1, one.size)
            if share > FLIPPED:
                return f"{what}: {share:.1%} of its numbers are others"
            continue
        one, other = one.astype("float64"), other.astype("float64")
        if not (np.isnan(one) == np.isnan(other)).all():
            return f"{what}: NaN stands in other places"
        infinite = np.isinf(other)
        if not (np.isinf(one) == infinite).all() or not (one[infinite] == other[infinite]).all():
            return f"{what}: infinities stand in other places"
        finite = np.isfinite(other)
        if finite.any():
            largest, scale = (float(np.abs(each).max()) for each in (one[finite] - other[finite], other[finite]))
            if largest > max(TOLERANCE, 8 * float(np.finfo(found[number].dtype).eps)) * scale:
                return f"{what}: differs by {largest:.2e}, with numbers up to {scale:.2e}"
    return ""
