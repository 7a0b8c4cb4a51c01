"""Named choices of a schedule.

A schedule asks :class:`Choices` for each tunable parameter, by name, with its options and a default. A tuner's trial
and a database record are decisions: options by name. Default, trial and tuned schedule are one function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar, cast

Option = int | tuple[int, ...]
"""A JSON value: an integer, a boolean, or a tuple of integers."""
Decisions = Mapping[str, Option]
"""Options by choice name. A choice without a decision takes its default."""
DEFAULTS: Decisions = MappingProxyType({})
T = TypeVar("T", bound=Option)


class DecisionError(ValueError):
    """Decision for a choice that a schedule does not offer, or for an option that the choice does not have."""


@dataclass(frozen=True)
class Choice:
    """Options and default of one choice. Both may depend on earlier decisions."""

    options: tuple[Option, ...]
    default: Option


class Choices:
    """Decisions for one schedule, and a record of the choices that it offers."""

    def __init__(self, decisions: Decisions = DEFAULTS) -> None:
        self.decisions = {name: tuple(value) if isinstance(value, list) else value for name, value in decisions.items()}
        self.offered: dict[str, Choice] = {}

    def choose(self, name: str, options: Sequence[T], default: T) -> T:
        """Return the decided option of a choice, or its default.

        Raises
        ------
        DecisionError
            The decided option is not among ``options``.
        """
        self.offered[name] = Choice(tuple(options), default)
        decided = self.decisions.get(name, default)
        if decided not in options:
            raise DecisionError(f"'{name}' has no option {decided}; it has {', '.join(map(str, options))}")
        return cast(T, decided)

    def close(self) -> None:
        """Raise :class:`DecisionError` if a decision names a choice that the schedule did not offer."""
        unknown = [name for name in self.decisions if name not in self.offered]
        if unknown:
            raise DecisionError(f"no choice is named '{unknown[0]}'; there are {', '.join(self.offered) or 'none'}")
