"""Measures by name: where the times of schedules come from.

One from outside is an entry point of the group ``pock_tvm.measures``, made from TVM's target (:data:`MEASURES`). It
needs no method but ``measure``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from schedules.decisions import Decisions

from ..compiler.database import Trial
from .measurer import LostError, Measure, Measurer, MeasuringError
from .plugins import Kind
from .static.measure import STATIC, StaticMeasure

DEVICE = "device"


class _Unconnected:
    """Measure without a connection, around another one, of which nothing but ``measure`` is needed."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure

    def reach(self, target: str) -> None:
        """Do nothing."""


class Checked(_Unconnected):
    """Measure from outside, which may yield anything."""

    def measure(self, definition: str, target: str, points: Sequence[Decisions]) -> Iterator[Trial]:
        """Yield its trials; raise TypeError for what is none."""
        for trial in self._measure.measure(definition, target, points):
            if not isinstance(trial, Trial):
                raise TypeError(f"it yields {trial!r}, which is no Trial")
            yield trial


MEASURES: Kind[Measure] = Kind(
    "measure",
    "measure",
    "pock_tvm.measures",
    {DEVICE: lambda target: Measurer(), STATIC: StaticMeasure},
    passed=(MeasuringError, LostError),
    adapted=lambda _, make: lambda target: Checked(make(target)),
)
"""Measures. They are made from TVM's target."""


class Once(_Unconnected):
    """Measure that yields at most one trial of each schedule, and of none that it was not asked for."""

    def measure(self, definition: str, target: str, points: Sequence[Decisions]) -> Iterator[Trial]:
        """Yield a trial for each point (:class:`Measure`)."""
        left = list(points)
        for trial in self._measure.measure(definition, target, points):
            if trial.decisions in left:
                left.remove(trial.decisions)
                yield trial
