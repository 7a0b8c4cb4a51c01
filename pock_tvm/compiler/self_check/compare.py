"""Compares one update of a program with the reference's, quantity by quantity."""

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

NEGLIGIBLE_RMS = 1e-7
"""Root mean square of a difference that never counts."""
GRADIENT_ERROR = 0.01
"""Largest relative error of a gradient that single precision determines. A gradient with more is zero in exact
arithmetic, and rounding noise here (the bias of attention's keys)."""
NOISE_NORM = 1e-5
"""Largest norm of such noise, relative to that of the largest gradient."""
SUM_ERROR = 4 * float(np.finfo("float32").eps)
"""Relative rounding error of a single-precision sum, apart from that of its terms."""
UNREACHED, ZERO = "no gradient reaches it", "its gradient is zero for a random batch"
ROUNDING = "its gradient is zero but for rounding"


@dataclass
class Comparison:
    """A comparison of program and reference, with what it found."""

    effective_gradients: Callable[[Measured], dict[str, np.ndarray]]
    """The reference's gradients as the optimizer sees them: trained parts, clipped, zero where no gradient reaches."""
    decay: float
    """The weight decay that was subtracted from the program's gradients."""
    worst: tuple[float, str] = (0.0, "")
    """The largest accepted relative difference beyond the floors, and its quantity."""
    unchecked: dict[str, str] = field(default_factory=dict)
    """Parameters whose gradients cannot be checked, and why."""

    def faults(
        self,
        weights: Weights,
        ours: Measured,
        theirs: Measured,
        nearby: Callable[[], Measured | None],
        exact: Callable[[], Measured | None],
    ) -> dict[str, Difference]:
        """Find the quantities that differ by :func:`difference`, by name."""
        _check_shapes(ours, theirs)

        statistics = [] if theirs.statistics is None else [*(ours.statistics or {}), *theirs.statistics]

        def quantities(measured: Measured, gradients: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            """The compared quantities by their names in messages, the forward pass first."""
            result = {f"output {index}": output for index, output in enumerate(measured.outputs)}
            if theirs.losses:
                result["the loss"] = np.array(measured.losses)
            moved = measured.statistics or {}
            result |= {statistic(name): moved.get(name, weights[name]) for name in statistics}
            return result | {gradient_of(name): value for name, value in gradients.items()}

        @functools.cache
        def judged(judge: Callable[[], Measured | None]) -> Mapping[str, np.ndarray | None]:
            measured = judge()
            return (
                dict.fromkeys(expected)
                if measured is None
                else quantities(measured, self.effective_gradients(measured))
            )

        actual = quantities(ours, {name: g for name, g in ours.gradients.items() if g is not None})
        expected = quantities(theirs, self.effective_gradients(theirs))
        if not (is_finite(theirs) and ours.gradients):  # no gradients of a loss that is not finite
            expected = {what: value for what, value in expected.items() if not what.startswith(GRADIENT)}
        floors = self._floors(weights, theirs, actual, expected, functools.partial(judged, nearby))
        faults: dict[str, Difference] = {}
        for what, value in expected.items():
            floor = floors.get(what, NEGLIGIBLE_RMS * float(np.sqrt(value.size)))
            differs = difference(
                actual[what],
                value,
                exact=lambda: judged(exact)[what],  # noqa: B023
                nearby=lambda: judged(nearby)[what],  # noqa: B023
                floor=floor,
            )
            if differs is not None:
                faults[what] = differs
            elif norm(value) > floor:
                beyond = max(0.0, relative_difference(actual[what], value) - floor / norm(value))
                self.worst = max(self.worst, (beyond, what))
        return faults

    def _floors(
        self,
        weights: Weights,
        theirs: Measured,
        actual: Mapping[str, np.ndarray],
        expected: Mapping[str, np.ndarray],
        nearby: Callable[[], Mapping[str, np.ndarray | None]],
    ) -> dict[str, float]:
        """The norms of differences that rounding accounts for, in statistics and in gradients."""
        floors = {statistic(name): SUM_ERROR * norm(weights[name]) for name in theirs.statistics or {}}
        gradients = {name: gradient for name, gradient in theirs.gradients.items() if gradient_of(name) in expected}
        sizes = {name: norm(expected[gradient_of(name)]) for name in gradients}
        largest = max(sizes.values(), default=0.0)
        for name, gradient in gradients.items():
            what = gradient_of(name)
            decay = 0.0 if gradient is None else self.decay
            floors[what] = SUM_ERROR * (decay + 1 / SCALE) * norm(weights[name])
            if gradient is None:
                self.unchecked.setdefault(name, UNREACHED)
            elif not gradient.any():
                self.unchecked.setdefault(name, ZERO)
                floors[what] += NOISE_NORM * largest
            elif (
                sizes[name] < NOISE_NORM * largest
                and relative_difference(actual[what], expected[what]) > GRADIENT_ERROR
            ):
                perturbed = nearby()[what]
                if perturbed is not None and norm(perturbed - expected[what]) > GRADIENT_ERROR * sizes[name]:
                    self.unchecked.setdefault(name, ROUNDING)
                    floors[what] += NOISE_NORM * largest
        return floors


GRADIENT = "the gradient of "


def gradient_of(name: str) -> str:
    """The name of a parameter's gradient in messages."""
    return f"{GRADIENT}'{name}'"


def statistic(name: str) -> str:
    """The name of a running statistic in messages."""
    return f"the running statistic '{name}'"


def _check_shapes(ours: Measured, theirs: Measured) -> None:
    actual, expected = ([output.shape for output in measured.outputs] for measured in (ours, theirs))
    if actual != expected:
        raise CheckError(f"the program's outputs have the shapes {actual}, and those of the model {expected}")


def masked(array: np.ndarray, what: Any) -> np.ndarray:
    """Zero the untrained part of an array; ``what`` is an entry of ``Program.trained``."""
    if not isinstance(what, dict):
        return array
    kept = np.zeros_like(array)
    at: tuple[Any, ...] = (*[slice(None)] * what["axis"], what["indices"])
    kept[at] = array[at]
    return kept


def coupled_decay(optimizer: Optimizer) -> float:
    """The weight decay that an optimizer adds to the gradient."""
    return 0.0 if isinstance(optimizer, AdamW) else optimizer.weight_decay
