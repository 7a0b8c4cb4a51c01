"""Named choices of a schedule.

A schedule asks :class:`Choices` wherever it could go another way, and names the options. Without decisions each answer
is the default; a tuner's trial and a database record are decisions by name. All three run the same function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar, cast

Option = int | tuple[int, ...]
"""A value that JSON keeps: an integer, a truth value, or several integers."""
Decisions = Mapping[str, Option]
"""Options by the names of choices. A choice without one takes its default."""
DEFAULTS: Decisions = MappingProxyType({})
T = TypeVar("T", bound=Option)


class DecisionError(ValueError):
    """A decision about a choice that a schedule does not offer, or for an option that it does not have."""


@dataclass(frozen=True)
class Choice:
    """The options of one choice. They may depend on earlier decisions."""

    options: tuple[Option, ...]
    default: Option


class Choices:
    """Answers what one schedule asks, from decisions, and records what it offered."""

    def __init__(self, decisions: Decisions = DEFAULTS) -> None:
        self.decisions = {name: tuple(value) if isinstance(value, list) else value for name, value in decisions.items()}
        self.offered: dict[str, Choice] = {}

    def choose(self, name: str, options: Sequence[T], default: T) -> T:
        """The option that was decided on, or the default, which is one of them.

        Raises
        ------
        DecisionError
            The decision is none of the options.
        """
        self.offered[name] = Choice(tuple(options), default)
        decided = self.decisions.get(name, default)
        if decided not in options:
            raise DecisionError(f"'{name}' has no option {decided}; it has {', '.join(map(str, options))}")
        return cast(T, decided)

    def close(self) -> None:
        """Raise a :class:`DecisionError` if something was decided that the schedule never asked."""
        unknown = [name for name in self.decisions if name not in self.offered]
        if unknown:
            raise DecisionError(f"no choice is named '{unknown[0]}'; there are {', '.join(self.offered) or 'none'}")
