"""Compares one update of the program with the reference's, quantity by quantity."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...device.optimizers import AdamW, Optimizer
from ...errors import CheckError
from .agreement import Difference, difference, norm, relative_difference
from .measured import SCALE, Measured, Weights, is_finite

SMALLEST = 1e-7
"""A difference of single values that never counts."""
KNOWN = 0.01
"""Relative: a gradient that single precision knows less well is zero in exact arithmetic, and rounding noise here (the
bias of attention's keys)."""
NOISE = 1e-5
"""Relative to the largest gradient: how large such noise may be."""
ROUNDED = 4 * float(np.finfo("float32").eps)
"""Relative: what single precision leaves of a sum, beside the rounding of what was added."""
UNREACHED, ZERO = "no gradient reaches it", "its gradient is zero for a random batch"
ROUNDING = "its gradient is zero but for rounding"


@dataclass
class Comparison:
    """What differs, and what was found on the way."""

    seen: Callable[[Measured], dict[str, np.ndarray]]
    """The reference's gradients, of what is trained, and clipped; zeros where no gradient reaches."""
    decay: float
    """The weight decay that was taken off the program's gradients."""
    worst: tuple[float, str] = (0.0, "")
    """The largest relative difference that was accepted, beside what never counts, and of what."""
    unchecked: dict[str, str] = field(default_factory=dict)
    """Parameters whose gradient proves nothing, and why."""

    def faults(
        self,
        weights: Weights,
        ours: Measured,
        theirs: Measured,
        nearby: Callable[[], Measured | None],
        exact: Callable[[], Measured | None],
    ) -> dict[str, Difference]:
        """The quantities that differ, by name; judged by :func:`difference`."""
        _check_shapes(ours, theirs)

        statistics = [] if theirs.statistics is None else [*(ours.statistics or {}), *theirs.statistics]

        def quantities(measured: Measured, gradients: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            """All that is compared, by what a message calls it; the forward pass first."""
            result = {f"output {index}": output for index, output in enumerate(measured.outputs)}
            if theirs.losses:
                result["the loss"] = np.array(measured.losses)
            moved = measured.statistics or {}
            result |= {statistic(name): moved.get(name, weights[name]) for name in statistics}
            return result | {gradient_of(name): value for name, value in gradients.items()}

        @functools.cache
        def judged(judge: Callable[[], Measured | None]) -> Mapping[str, np.ndarray | None]:
            measured = judge()
            return dict.fromkeys(wanted) if measured is None else quantities(measured, self.seen(measured))

        found = quantities(ours, {name: g for name, g in ours.gradients.items() if g is not None})
        wanted = quantities(theirs, self.seen(theirs))
        if not (is_finite(theirs) and ours.gradients):  # of a step without a loss nothing is trained
            wanted = {what: value for what, value in wanted.items() if not what.startswith(GRADIENT)}
        floors = self._floors(weights, theirs, found, wanted, functools.partial(judged, nearby))
        faults: dict[str, Difference] = {}
        for what, value in wanted.items():
            floor = floors.get(what, SMALLEST * float(np.sqrt(value.size)))
            differs = difference(
                found[what],
                value,
                exact=lambda: judged(exact)[what],  # noqa: B023
                nearby=lambda: judged(nearby)[what],  # noqa: B023
                floor=floor,
            )
            if differs is not None:
                faults[what] = differs
            elif norm(value) > floor:
                beyond = max(0.0, relative_difference(found[what], value) - floor / norm(value))
                self.worst = max(self.worst, (beyond, what))
        return faults

    def _floors(
        self,
        weights: Weights,
        theirs: Measured,
        found: Mapping[str, np.ndarray],
        wanted: Mapping[str, np.ndarray],
        nearby: Callable[[], Mapping[str, np.ndarray | None]],
    ) -> dict[str, float]:
        """The norms of differences that do not count: rounding of statistics, and of gradients that are zero."""
        floors = {
            statistic(name): 4 * float(np.finfo("float32").eps) * norm(weights[name])
            for name in theirs.statistics or {}
        }
        gradients = {name: gradient for name, gradient in theirs.gradients.items() if gradient_of(name) in wanted}
        sizes = {name: norm(wanted[gradient_of(name)]) for name in gradients}
        largest = max(sizes.values(), default=0.0)
        for name, gradient in gradients.items():
            what = gradient_of(name)
            decay = 0.0 if gradient is None else self.decay
            floors[what] = ROUNDED * (decay + 1 / SCALE) * norm(weights[name])
            if gradient is None:
                self.unchecked.setdefault(name, UNREACHED)
            elif not gradient.any():
                self.unchecked.setdefault(name, ZERO)
                floors[what] += NOISE * largest
            elif sizes[name] < NOISE * largest and relative_difference(found[what], wanted[what]) > KNOWN:
                shaken = nearby()[what]
                if shaken is not None and norm(shaken - wanted[what]) > KNOWN * sizes[name]:
                    self.unchecked.setdefault(name, ROUNDING)
                    floors[what] += NOISE * largest
        return floors


GRADIENT = "the gradient of "


def gradient_of(name: str) -> str:
    """What a message calls the gradient of a parameter."""
    return f"{GRADIENT}'{name}'"


def statistic(name: str) -> str:
    """What a message calls a running statistic."""
    return f"the running statistic '{name}'"


def _check_shapes(ours: Measured, theirs: Measured) -> None:
    found, wanted = ([output.shape for output in measured.outputs] for measured in (ours, theirs))
    if found != wanted:
        raise CheckError(f"the program's outputs have the shapes {found}, and those of the model {wanted}")


def masked(array: np.ndarray, what: Any) -> np.ndarray:
    """What is trained of an array, zero elsewhere; ``what`` as ``Program.trained`` has it."""
    if not isinstance(what, dict):
        return array
    kept = np.zeros_like(array)
    at: tuple[Any, ...] = (*[slice(None)] * what["axis"], what["indices"])
    kept[at] = array[at]
    return kept


def coupled_decay(optimizer: Optimizer) -> float:
    """The weight decay that an optimizer adds to the gradient."""
    return 0.0 if isinstance(optimizer, AdamW) else optimizer.weight_decay
