"""The parts of one search: ours by name, or those of other packages, for which ours stand in when they fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.target import Target

from schedules.target import Target as KernelTarget

from ..compiler.targets import runs_here
from .cost_model import COST_MODELS, CostModel, NoModel
from .measurer import Measure, Measurer
from .measures import DEVICE, MEASURES, Once
from .plugins import Maker
from .space import SPACES, Space, own_space
from .strategies import STRATEGIES, Strategy


@dataclass(frozen=True)
class Parts:
    """Strategy, cost model, space and measure of a search on a target."""

    target: Target
    strategy: Maker[Strategy]
    cost_model: CostModel
    make_space: Maker[Space]
    make_measure: Maker[Measure] | None
    """None: the devices, or a process of this machine."""
    keep_going: bool

    def space_of(self, target: KernelTarget, func: tirx.PrimFunc) -> Space:
        """Return the space of a kernel."""
        return self.make_space(target, func, instead=_if(self.keep_going, lambda: own_space(target, func)))

    def measures(self, own: Sequence[Measurer]) -> list[Measure]:
        """Return what measures. ``own`` does if it is the devices, or stands in for another one where it can."""
        if self.make_measure is None:
            return list(own)
        stands_in = self.keep_going and runs_here(self.target)
        return [Once(self.make_measure(self.target, instead=_if(stands_in, lambda: own[0])))]


def parts_of(
    target: Target, *, strategy: str, cost_model: str | None, space: str, measure: str | Measure, keep_going: bool
) -> Parts:
    """Return the parts of these names (:func:`pock_tvm.tuning.tune.tune`).

    Raises
    ------
    OptionError
        There is none of a name.
    PluginError
        A part of another package cannot be imported or made, and ours does not take its place.
    """
    name = cost_model or ("none" if strategy == "random" else "xgboost")
    return Parts(
        target,
        STRATEGIES.maker(strategy),
        COST_MODELS.maker(name)(target, instead=_if(keep_going, NoModel)),
        SPACES.maker(space),
        _measure_maker(measure),
        keep_going,
    )


def _measure_maker(measure: str | Measure) -> Maker[Measure] | None:
    if not isinstance(measure, str):
        return lambda *_, instead=None: measure
    return None if measure == DEVICE else MEASURES.maker(measure)


def _if(wanted: bool, make: Callable[[], Any]) -> Callable[[], Any] | None:
    return make if wanted else None
