"""Distributions of the inputs of a test's network."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Draw = Callable[[np.random.Generator], np.ndarray]


def normal(*shape: int) -> Draw:
    return lambda rng: rng.standard_normal(shape).astype("float32")


def uniform(*shape: int) -> Draw:
    """From 0 to 1: colours, amplitudes, noise to sort by."""
    return lambda rng: rng.random(shape).astype("float32")


def below(limit: int, *shape: int) -> Draw:
    return lambda rng: rng.integers(0, limit, shape)


def lengths(batch: int, longest: int) -> Draw:
    """A mask that keeps the first few of each row, at least one."""
    return lambda rng: np.arange(longest) < rng.integers(1, longest + 1, (batch, 1))
