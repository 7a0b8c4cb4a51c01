"""The self-check: refuses a program whose training step differs from that of the model's own framework."""

from __future__ import annotations

import functools
import importlib.util
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...device.losses import Loss
from ...device.optimizers import Optimizer
from ...device.program import Program
from ...errors import CheckError, NonFiniteError, PockError, PockWarning
from ...frontend import Model
from .agreement import Difference
from .batches import synthetic_batches, varied
from .blame import first_wrong_layer
from .compare import GRADIENT, ZERO, Comparison, coupled_decay, gradient_of, masked
from .finite_differences import Directions, settles
from .measured import Batch, Measured, Reference, Weights, is_finite
from .probe import Probe

ATTEMPTS = 3
"""Batches on which a quantity must differ to count as wrong. Where rounding moves a value across a kink (ReLU, a
maximum) a correct program may differ from PyTorch; a wrong one differs on every batch."""
RELATIVE_NOISE, ABSOLUTE_NOISE = 0.1, 0.02
"""Standard deviation of the noise added to weights where gradients are zero: relative to a weight's RMS, plus this."""
NEARBY = 1e-6
"""Relative noise of weights whose effect is that of rounding, across kinks and in Winograd's convolutions."""
DISTINCT_BATCHES = 2
"""Different batches of an update that several steps share."""

log = logging.getLogger("pock_tvm")


@dataclass
class SelfCheck:
    """A check of a compiled program against a reference."""

    model: Model
    program: Program
    reference: Reference
    optimizer: Optimizer
    compile_model: Callable[[Model], Program]
    """Compiles a variant of the model with the same options, unchecked and unguarded."""
    given: tuple[Any, Any] | None = None
    """A user's batch, x and y."""

    def run(self) -> dict[str, Any]:
        """Run the check, and return its record for the manifest.

        Raises
        ------
        CheckError
            The program differs from the reference.
        """
        start = time.perf_counter()
        self.loss = Loss(**self.program.manifest["loss"])
        self.probe = Probe(self.program)
        self.comparison = Comparison(self._effective_gradients, coupled_decay(self.optimizer))
        self.disputed: list[str] = []
        unchecked = self.comparison.unchecked
        weights = dict(self.program.weights)
        ours, batches = self._agree(weights)
        self._check_update(weights, batches, ours)
        zero_gradients = [name for name, why in unchecked.items() if why == ZERO]
        if zero_gradients:  # comparing zeros proves nothing: check again with weights that give other gradients
            for name in zero_gradients:
                del unchecked[name]
            self._agree(_with_noise(weights, self.model.trainable))
        if not self.probe.tells_gradients:
            unchecked |= dict.fromkeys(self.program.trained, "an Adam without epsilon hides its gradient")
        if self.disputed:
            names = ", ".join(f"'{name}'" for name in dict.fromkeys(self.disputed))
            warnings.warn(
                f"{self.reference.name}'s own gradient of {names} is wrong: finite differences of its loss agree with "
                "the program's, which is trained by",
                PockWarning,
                stacklevel=2,
            )
        seconds, (difference, what) = time.perf_counter() - start, self.comparison.worst
        log.info(
            "checked against %s in %.1f s: the largest difference is %.1e (%s)%s",
            self.reference.name,
            seconds,
            difference,
            what,
            "".join(f"; '{name}' not checked: {why}" for name, why in unchecked.items()),
        )
        return {
            "against": self.reference.name,
            "batch": "synthetic" if self.given is None else "given",
            "worst": {"difference": difference, "of": what},
            "unchecked": unchecked,
            "disputed": list(dict.fromkeys(self.disputed)),
            "seconds": round(seconds, 2),
        }

    def _agree(self, weights: Weights) -> tuple[Measured, list[Batch]]:
        """Compare on up to ``ATTEMPTS`` updates, until every quantity has agreed on one."""
        failing: dict[str, Difference] | None = None
        for attempt in range(ATTEMPTS):
            batches, theirs = self._batches(weights, attempt)
            if attempt == 0:
                self._refuse_randomness(weights, batches[0])
            ours = self._measured(weights, batches)
            undecayed = self._without_decay(weights, ours, theirs)
            nearby = functools.partial(self._nearby, weights, batches)
            exact = functools.partial(self._exact, weights, batches)
            faults = self.comparison.faults(weights, undecayed, theirs, nearby, exact)
            failing = faults if failing is None else {name: faults[name] for name in failing if name in faults}
            if not failing:
                if not theirs.gradients and is_finite(ours):
                    self._check_directions(weights, batches, undecayed)
                return ours, batches
        failing = self._without_disputed(failing or {}, weights, batches, undecayed)
        if not failing:
            return ours, batches
        raise CheckError(self._message(failing, weights, batches[0]))

    def _without_disputed(
        self, failing: dict[str, Difference], weights: Weights, batches: list[Batch], ours: Measured
    ) -> dict[str, Difference]:
        """Leave out gradients where finite differences of the reference's own loss confirm ours."""
        is_clipped = self.program.manifest["options"]["clip_norm"] is not None
        exact = self._exact(weights, batches) if self.reference.gradients_are_derivatives and not is_clipped else None
        if exact is None:
            return failing
        effective = self._effective_gradients(exact)

        def loss(moved: Weights) -> float:
            return float(np.mean(self.reference.measure(moved, batches, precise=True).losses))

        for name in effective:
            gradient = ours.gradients.get(name)
            if gradient_of(name) not in failing or gradient is None:
                continue
            if settles(loss, weights, name, gradient, effective[name]):
                self.disputed.append(name)
                failing = {what: differs for what, differs in failing.items() if what != gradient_of(name)}
        return failing

    def _measured(self, weights: Weights, batches: list[Batch]) -> Measured:
        """Measure the program. If its guard stops it, measure the same program without a guard: the reference goes on
        with numbers that are not finite, too."""
        try:
            return self.probe.measure(weights, batches)
        except NonFiniteError as error:
            log.info("checked without guards: %s", error)
            self.probe = Probe(self.compile_model(self.model))
            return self.probe.measure(weights, batches)

    def _check_update(self, weights: Weights, batches: list[Batch], ours: Measured) -> None:
        """Check that repeating a step repeats its loss, and check an update with non-zero optimizer state."""
        losses, after = self.probe.update(weights, batches)
        if not np.array_equal(losses, ours.losses, equal_nan=True):
            raise CheckError(f"the same step gives the loss {ours.losses[0]:.9g} and then {losses[0]:.9g}. {REPORT}")
        if importlib.util.find_spec("torch") is None:
            self.comparison.unchecked["the optimizer"] = "PyTorch is not installed"
        elif is_finite(ours) and ours.gradients:
            from .update import check_updates

            check_updates(self.optimizer, self.program.trained, ours.gradients, weights, after)

    def _check_directions(self, weights: Weights, batches: list[Batch], ours: Measured) -> None:
        """Check gradients by finite differences, where the reference has none."""
        trained, options = self.program.trained, self.program.manifest["options"]
        if options["clip_norm"] is not None or not ours.gradients:
            why = "gradients that are clipped cannot be told from differences of the loss"
            self.comparison.unchecked |= dict.fromkeys(trained, why)
            return
        gradients = {name: g for name, g in ours.gradients.items() if g is not None}
        self.comparison.unchecked |= {name: ZERO for name, gradient in gradients.items() if not gradient.any()}

        def exact_loss(moved: Weights) -> float | None:
            exact = self._exact(moved, batches)
            return float(np.mean(exact.losses)) if exact is not None and exact.losses else None

        directions = Directions(lambda moved: self.probe.loss(moved, batches), trained, exact_loss)
        self.comparison.unchecked |= directions.check(weights, gradients, self.model.trainable)

    # ---- the batches -------------------------------------------------------------------------------------------------

    def _batches(self, weights: Weights, attempt: int) -> tuple[list[Batch], Measured]:
        """Make the batches of one update, and measure the reference on them."""
        steps = int(self.program.manifest["options"]["accumulate"])
        if self.given is not None:
            given = self.probe.checked(*self.given)
            batches = [varied(given, attempt) if attempt else given] * steps
            return batches, self.reference.measure(weights, batches)
        fallback: tuple[list[Batch], Measured] | None = None
        refusal: Exception | None = None
        for make in synthetic_batches(self.model, self.loss, self.program.index_limits, attempt):
            distinct = [make(number) for number in range(min(steps, DISTINCT_BATCHES))]
            batches = [distinct[step % len(distinct)] for step in range(steps)]
            try:
                theirs = self.reference.measure(weights, batches)
            except (RuntimeError, IndexError, ValueError) as error:  # the framework itself refuses such values
                refusal = error
                continue
            fallback = fallback or (batches, theirs)
            if is_finite(theirs):
                return batches, theirs
        if fallback is None:
            raise CheckError(
                f"no synthetic batch runs in {self.reference.name} ({refusal}): give one that does, "
                "compile(check_with=(x, y)), or compile with check=False"
            )
        return fallback

    def _nearby(self, weights: Weights, batches: list[Batch]) -> Measured | None:
        try:
            return self.reference.measure(_nearby(weights), batches)
        except (RuntimeError, IndexError, ValueError) as error:  # the noise may leave the domain of an operator
            log.info("%s cannot run this model with weights nearby: %s", self.reference.name, error)
            return None

    def _exact(self, weights: Weights, batches: list[Batch]) -> Measured | None:
        try:
            return self.reference.measure(weights, batches, precise=True)
        except (RuntimeError, NotImplementedError) as error:
            log.info("%s cannot run this model in double precision: %s", self.reference.name, error)
            return None

    def _refuse_randomness(self, weights: Weights, batch: Batch) -> None:
        layer = self.reference.random_layer(weights, batch)
        if layer is not None:
            raise CheckError(
                f"the model draws random numbers in {layer}: the same input gives another result each time, which a "
                "compiled program cannot follow. Give the numbers as a further input of the model, or export it without"
            )

    def _effective_gradients(self, measured: Measured) -> dict[str, np.ndarray]:
        """The reference's gradients as the optimizer sees them: trained parts, clipped."""
        trained, largest = self.program.trained, self.program.manifest["options"]["clip_norm"]
        kept = {name: masked(g, trained[name]) for name, g in measured.gradients.items() if g is not None}
        if largest is not None and kept:
            from .update import clipped

            kept = clipped(kept, largest)
        weights = self.program.weights
        return {name: kept[name] if name in kept else np.zeros_like(weights[name]) for name in measured.gradients}

    def _without_decay(self, weights: Weights, ours: Measured, theirs: Measured) -> Measured:
        """Subtract the coupled weight decay from the program's gradients, except where no gradient reaches: PyTorch's
        optimizers do not decay such parameters."""
        decay = coupled_decay(self.optimizer)
        trained = self.program.trained
        unreached = {name for name, gradient in theirs.gradients.items() if gradient is None}
        gradients: dict[str, np.ndarray | None] = {
            name: g - np.float32(decay) * masked(weights[name], trained[name]) if decay and name not in unreached else g
            for name, g in ours.gradients.items()
            if g is not None
        }
        return replace(ours, gradients=gradients)

    # ---- messages ----------------------------------------------------------------------------------------------------

    def _message(self, failing: dict[str, Difference], weights: Weights, batch: Batch) -> str:
        """Name the first layer that differs, else the differing gradient that is closest to the loss."""
        name, reference = next(iter(failing)), self.reference.name
        if not name.startswith(GRADIENT):
            found = self._first_wrong_layer(weights, batch)
            layer = f"the first layer that differs is {found[0]}: {found[1]}" if found else f"{name} is {failing[name]}"
            return f"the program does not compute what {reference} does: {layer}. {REPORT}"
        order = [gradient_of(parameter) for parameter in self.model.trainable]
        name = max(failing, key=order.index)
        others = f" ({len(failing) - 1} further gradients differ)" if len(failing) > 1 else ""
        return f"the program does not train as {reference} does: {name} is {failing[name]}{others}. {REPORT}"

    def _first_wrong_layer(self, weights: Weights, batch: Batch) -> tuple[str, Difference] | None:
        try:
            return first_wrong_layer(self.model, self.reference, weights, batch, self.compile_model)
        except PockError as error:  # that the outputs differ is reported anyway
            log.info("which layer differs first cannot be told: %s", error)
            return None


REPORT = "This is a fault of the compiler: please report it with the model. Compiled with check=False it stays wrong"


def _with_noise(weights: Weights, parameters: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Add noise to weights, so that no gradient is zero because a weight is."""
    rng = np.random.default_rng(0)
    moved = dict(weights)
    for name in parameters:
        array = weights[name]
        rms = float(np.sqrt(np.mean(np.square(array, dtype="float64")))) if array.size else 0.0
        deviation = RELATIVE_NOISE * rms + ABSOLUTE_NOISE
        moved[name] = (array + deviation * rng.standard_normal(array.shape)).astype(array.dtype)
    return moved


def _nearby(weights: Weights) -> dict[str, np.ndarray]:
    """Perturb weights by about as much as rounding perturbs a layer's values."""
    rng = np.random.default_rng(0)
    return {
        name: (array * (1 + NEARBY * rng.standard_normal(array.shape))).astype(array.dtype)
        if array.dtype.kind == "f"
        else array
        for name, array in weights.items()
    }
