"""Space of one kernel's schedules: every way to decide the choices that its schedule offers.

One from outside is an entry point of the group ``pock_tvm.spaces``: a schedule with choices (:mod:`schedules.spaces`).
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from tvm import s_tir, tirx

from relay_passes.ir import first_line
from schedules.decisions import DEFAULTS, Choice, Decide, Decisions, Option
from schedules.generic import METASCHEDULE
from schedules.loops import Unsuited
from schedules.spaces import GROUP, OWN, space_of
from schedules.target import GENERIC, Target

from ..compiler.database import text_of
from .plugins import Kind

OWN_SPACE = "own"
SPACE = "space"
"""Name of the choice among the schedules of a space."""
TRIES = 32
"""Draws that bring nothing new, until a space counts as exhausted."""


class Point(dict[str, Option]):
    """Complete decisions, and the kernel that they make: to schedule it again would take milliseconds. Another process
    gets the decisions alone."""

    scheduled: tirx.PrimFunc

    def __reduce__(self) -> tuple[type[dict[str, Option]], tuple[dict[str, Option]]]:
        return dict, (dict(self),)


@dataclass
class Space:
    """Schedules of a kernel on a target. A point is complete decisions: an option for every choice that comes up.

    Choices may depend on earlier ones, so that a space is a tree. It is walked by running the schedule, which takes
    milliseconds.
    """

    target: Target
    func: tirx.PrimFunc
    names: tuple[str | None, ...] = (None,)
    """Schedules to take: None is the target's own, others are of :mod:`schedules.spaces`. Which, is the first choice of
    a walk, ``space``, if there are several."""
    faults: Counter[str] = field(default_factory=Counter)
    """Errors, other than those by which a schedule says that a point has none, and how often they were met."""
    _open: dict[str, list[str]] = field(default_factory=dict)
    """Choices that have several options, by point as text."""

    @functools.cached_property
    def default(self) -> Decisions:
        """The point of the default schedule."""
        found = self.walk(lambda _name, _options, default: default)
        assert found is not None, "the default schedule of a kernel can be made"
        return dict(found)

    @property
    def is_open(self) -> bool:
        """Whether there is anything to choose."""
        return bool(self._open_choices(self.default))

    def sample(self, rng: np.random.Generator) -> Point | None:
        """Draw each choice uniformly; None if no schedule can be made so."""
        return self.walk(lambda _name, options, _default: options[int(rng.integers(len(options)))])

    def mutate(self, point: Decisions, rng: np.random.Generator) -> Point | None:
        """Decide one or two choices of a point otherwise, and repair what no longer fits; None as :meth:`sample`."""
        names = self._open_choices(point)
        if not names:
            return None
        changed = set(rng.choice(names, min(len(names), int(rng.integers(1, 3))), replace=False).tolist())
        given = self._with_space(point)

        def decide(name: str, options: Sequence[Option], default: Option) -> Option:
            kept = nearest(given.get(name, default), options, default)
            others = [option for option in options if option != kept]
            return others[int(rng.integers(len(others)))] if name in changed and others else kept

        return self.walk(decide)

    def cross(self, one: Decisions, other: Decisions, rng: np.random.Generator) -> Point | None:
        """Take each choice from one of two points, repaired; None as :meth:`sample`."""
        one, other = self._with_space(one), self._with_space(other)

        def decide(name: str, options: Sequence[Option], default: Option) -> Option:
            source = one if rng.random() < 0.5 else other
            return nearest(source.get(name, default), options, default)

        return self.walk(decide)

    def repaired(self, decisions: Decisions) -> Point | None:
        """Return the point next to decisions of another kernel, or of an older schedule; None as :meth:`sample`."""
        given = self._with_space(decisions)
        return self.walk(lambda name, options, default: nearest(given.get(name, default), options, default))

    def walk(self, decide: Decide) -> Point | None:
        """Return the point that decisions lead to, each made when the schedule comes to it; None as :meth:`sample`."""
        number = decide(SPACE, range(len(self.names)), 0) if len(self.names) > 1 else 0
        assert isinstance(number, int)
        found = self._walked(decide, self.names[number])
        if found is None:
            return None
        scheduled, offered = found
        point = Point((name, choice.decided) for name, choice in offered.items())
        point.scheduled = scheduled
        self._open[text_of(point)] = [name for name, choice in offered.items() if len(choice.options) > 1]
        return point

    def scheduled(self, point: Decisions) -> tirx.PrimFunc:
        """Return the kernel with the schedule of a point."""
        return point.scheduled if isinstance(point, Point) else self.target.schedule(self.func, point)

    def completed(self, decisions: Decisions) -> Decisions:
        """Return decisions with the default of each choice that they leave open.

        Raises
        ------
        DecisionError
            They name a choice or an option that the schedule does not offer.
        """
        space = space_of(decisions) or self.names[0]
        return {name: choice.decided for name, choice in self.target.options(self.func, decisions, space).items()}

    def points(self) -> Iterator[Decisions]:
        """Yield every point once, depth first; the default comes first."""
        for space in self.names:
            prefixes: list[Decisions] = [DEFAULTS]
            while prefixes:
                prefix = prefixes.pop()
                found = self._walked(_following(prefix), space)
                if found is None:
                    continue
                _, offered = found
                yield {name: choice.decided for name, choice in offered.items()}
                taken: dict[str, Option] = {}
                for name, choice in offered.items():
                    if name not in prefix:
                        prefixes += [taken | {name: option} for option in choice.options if option != choice.decided]
                    taken[name] = choice.decided

    def _open_choices(self, point: Decisions) -> list[str]:
        if text_of(point) not in self._open:
            self.walk(_following(self._with_space(point)))
        return self._open.get(text_of(point), [])

    def _with_space(self, decisions: Decisions) -> Decisions:
        """Return decisions with that of the first choice of a walk."""
        space = space_of(decisions)
        return {**decisions, SPACE: self.names.index(space) if space in self.names else 0}

    def _walked(self, decide: Decide, space: str | None) -> tuple[tirx.PrimFunc, dict[str, Choice]] | None:
        try:
            return self.target.walk(self.func, decide, space)
        except (s_tir.ScheduleError, Unsuited):
            return None  # TVM's primitives, or the schedule, do not allow what was decided
        except Exception as error:
            if space not in (None, *OWN):
                raise  # whoever wrote the schedule shall know
            self.faults[f"{type(error).__name__}: {first_line(error)}"] += 1
            return None


def new_points(draw: Callable[[], Decisions | None], known: set[str], count: int) -> list[Decisions]:
    """Draw up to ``count`` points that are not ``known``, and add them there. Fewer: the space seems exhausted."""
    found: list[Decisions] = []
    tries = 0
    while len(found) < count and tries < TRIES:
        point = draw()
        if point is None or text_of(point) in known:
            tries += 1
            continue
        known.add(text_of(point))
        found.append(point)
    return found


def nearest(wanted: Option, options: Sequence[Option], default: Option) -> Option:
    """Return the option next to a wanted one, by the ratios of its numbers; the default if it has another form."""
    if wanted in options:
        return wanted
    alike = [option for option in options if len(_numbers(option)) == len(_numbers(wanted))]
    return min(alike, key=lambda option: _distance(option, wanted), default=default)


def _numbers(option: Option) -> tuple[int, ...]:
    return option if isinstance(option, tuple) else (option,)


def _distance(one: Option, other: Option) -> float:
    pairs = zip(_numbers(one), _numbers(other), strict=True)
    return sum(abs(math.log2(max(a, 0.5) / max(b, 0.5))) for a, b in pairs)


def _following(decisions: Decisions) -> Decide:
    return lambda name, _options, default: decisions.get(name, default)


def own_space(target: Target, func: tirx.PrimFunc) -> Space:
    """Return the space of the target's own schedules, and for a kernel that no rule suits MetaSchedule's beside it."""
    has_rule = target.is_gpu or GENERIC not in target.schedule(func).attrs
    return Space(target, func) if has_rule else Space(target, func, (None, METASCHEDULE))


def _named(name: str) -> Callable[[Target, tirx.PrimFunc], Space]:
    return lambda target, func: Space(target, func, (name,))


SPACES: Kind[Space] = Kind(
    "space",
    "space",
    GROUP,
    {OWN_SPACE: own_space, **{name: _named(name) for name in OWN}},
    adapted=lambda name, _rule: _named(name),
)
"""Spaces: that of the target's own schedules, and others. They are made from a target and a kernel."""
