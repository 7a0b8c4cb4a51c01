"""Schedules that stand beside a target's own: TVM's generic one, and those of other packages.

Decisions say by a key of their own (:func:`key_of`) that a kernel has one of them. A schedule from outside is an entry
point of the group :data:`GROUP`: a function like :data:`Rule`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

from tvm import s_tir, tirx

from .decisions import Choices, DecisionError
from .generic import METASCHEDULE, generic

GROUP = "pock_tvm.spaces"
PREFIX = "space:"
Rule = Callable[[s_tir.Schedule, Choices, Any], tirx.PrimFunc | None]
"""Schedules a kernel by the choices that it asks for, for a target's traits; or returns the kernel written anew. Raises
``schedules.loops.Unsuited`` for a kernel that it does not suit, which then has the target's own schedule."""
OWN: dict[str, Rule] = {METASCHEDULE: generic}


class SpaceError(DecisionError):
    """Decisions are for a schedule of a package that is not installed."""


def key_of(space: str) -> str:
    """Return the key that decisions of a space have."""
    return PREFIX + space


def space_of(decisions: object) -> str | None:
    """Return the space that decisions are for; None for the target's own schedules, and for what is no mapping."""
    if not isinstance(decisions, Mapping):
        return None
    return next((name.removeprefix(PREFIX) for name in decisions if name.startswith(PREFIX)), None)


@functools.cache
def rule_of(space: str) -> Rule:
    """Return the schedule of a space.

    Raises
    ------
    SpaceError
        There is none of that name.
    """
    if space in OWN:
        return OWN[space]
    for entry in entry_points(group=GROUP):
        if entry.name == space:
            return entry.load()
    raise SpaceError(f"the schedule '{space}' is of a package that is not installed")


def in_space(space: str) -> Callable[..., tirx.PrimFunc | None]:
    """Return a space's schedule, which says in its choices whose it is."""
    rule = rule_of(space)

    def scheduled(sch: s_tir.Schedule, choices: Choices, traits: Any) -> tirx.PrimFunc | None:
        choices.choose(key_of(space), (True,), True)
        return rule(sch, choices, traits)

    return scheduled
