"""Calibration statistics of a value, and the quantisation range that follows from them."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np

from schedules.kernels.quantized import LARGEST

from .fixed_point import EightBits, eight_bits

SAMPLED = 2**14
"""Numbers of a value that are kept of each batch, to weigh clipping against rounding."""
SHARES = np.linspace(0.4, 1.0, 31)
"""Shares of the extremes that are tried as ends of a range."""


@dataclass
class Observations:
    """Statistics of a value over calibration batches."""

    low: float = 0.0
    high: float = 0.0
    """Extremes, 0 among them."""
    means: list[np.ndarray] = field(default_factory=list)
    """By channel, which is the last axis, of each batch."""
    sampled: list[np.ndarray] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def see(self, array: np.ndarray) -> None:
        """Take in the value on another batch."""
        self.low, self.high = min(self.low, float(array.min())), max(self.high, float(array.max()))
        self.means.append(array.reshape(-1, array.shape[-1]).mean(axis=0, dtype=np.float64))
        flat = array.reshape(-1)
        # At random: regular steps would see some channels alone.
        self.sampled.append(self.rng.choice(flat, SAMPLED) if flat.size > SAMPLED else flat.copy())

    @property
    def is_empty(self) -> bool:
        """Whether it was always zero, so that it has no range."""
        return self.low == self.high

    @property
    def mean(self) -> np.ndarray:
        """Means by channel."""
        return np.mean(self.means, axis=0)

    @functools.cached_property
    def numbers(self) -> EightBits:
        """Numbers with the least mean square error of rounding and clipping."""
        x = np.concatenate(self.sampled)

        def error(share: float) -> float:
            numbers = eight_bits(share * self.low, share * self.high)
            q = np.clip(np.rint(x / numbers.scale) + numbers.zero, 0, LARGEST)
            return float(np.mean(np.square((q - numbers.zero) * numbers.scale - x)))

        best = float(min(SHARES[::-1], key=error))
        return eight_bits(best * self.low, best * self.high)
