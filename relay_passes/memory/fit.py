"""Results of fitting a plan to a memory budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Fit(Generic[T]):
    """Value that fits its budget."""

    value: T


@dataclass(frozen=True)
class TooLarge:
    """Failure of every attempt to fit the budget."""

    smallest: int
    """Smallest budget, in bytes, that an attempt would fit."""
    state: int = 0
    """Bytes of ``smallest`` that no plan can reduce: optimizer state and gradient sums."""

    def beside(self, state: int) -> TooLarge:
        """Add ``state`` bytes, which the budget must also hold."""
        return TooLarge(self.smallest + state, self.state + state)
