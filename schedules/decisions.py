"""Named choices of a schedule.

A schedule asks :class:`Choices` for each tunable parameter, by name, with its options and a default. A tuner's trial
and a database record are decisions: options by name. Default, trial and tuned schedule are one function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar, cast

Option = int | tuple[int, ...]
"""A JSON value: an integer, a boolean, or a tuple of integers."""
Decisions = Mapping[str, Option]
"""Options by choice name. A choice without a decision takes its default."""
DEFAULTS: Decisions = MappingProxyType({})
Decide = Callable[[str, Sequence[Option], Option], Option]
"""Decides a choice when a schedule comes to it, by its name, options and default: how a tuner walks a space whose later
choices depend on earlier ones."""
T = TypeVar("T", bound=Option)


class DecisionError(ValueError):
    """Decision for a choice that a schedule does not offer, or for an option that the choice does not have."""


@dataclass(frozen=True)
class Choice:
    """Options and default of one choice, which may depend on earlier decisions, and the option that was taken."""

    options: tuple[Option, ...]
    default: Option
    decided: Option


class Choices:
    """Decisions for one schedule, and a record of the choices that it offers."""

    def __init__(self, decisions: Decisions | Decide = DEFAULTS) -> None:
        self._decide = decisions if callable(decisions) else None
        given = {} if callable(decisions) else decisions
        self.decisions = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        self.offered: dict[str, Choice] = {}

    def choose(self, name: str, options: Sequence[T], default: T) -> T:
        """Return the decided option of a choice, or its default.

        Raises
        ------
        DecisionError
            The decided option is not among ``options``.
        """
        decided: Option = self.decisions.get(name, default)
        if self._decide is not None:
            decided = self._decide(name, options, default)
        if decided not in options:
            raise DecisionError(f"'{name}' has no option {decided}; it has {', '.join(map(str, options))}")
        self.offered[name] = Choice(tuple(options), default, decided)
        return cast(T, decided)

    def close(self) -> None:
        """Raise :class:`DecisionError` if a decision names a choice that the schedule did not offer."""
        unknown = [name for name in self.decisions if name not in self.offered]
        if unknown:
            raise DecisionError(f"no choice is named '{unknown[0]}'; there are {', '.join(self.offered) or 'none'}")
