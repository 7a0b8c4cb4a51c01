"""The answer of a memory plan to a budget, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Fit(Generic[T]):
    """Something that holds its budget."""

    value: T


@dataclass(frozen=True)
class TooLarge:
    """Nothing that was tried holds the budget."""

    smallest: int
    """The bytes of the smallest budget that would do."""
    state: int = 0
    """Those of them that no plan makes fewer: optimizer state and gradient sums."""

    def beside(self, state: int) -> TooLarge:
        """The same answer to a budget that holds so many bytes of state, too."""
        return TooLarge(self.smallest + state, self.state + state)
