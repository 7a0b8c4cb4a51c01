"""The self-check: a program takes the step that its model's own framework takes, or it does not exist."""

from __future__ import annotations

import functools
import importlib.util
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...device.losses import Loss
from ...device.optimizers import Optimizer
from ...device.program import Program
from ...errors import CheckError, PockError
from ...frontend import Model
from .agreement import Difference
from .batches import synthetic_batches, varied
from .blame import first_wrong_layer
from .compare import GRADIENT, ZERO, Comparison, coupled_decay, gradient_of, masked
from .finite_differences import Directions
from .measured import Batch, Measured, Reference, Weights, is_finite
from .probe import Probe

ATTEMPTS = 3
"""Batches that are tried before two results count as different: where rounding puts a value on the other side of a kink
(ReLU, a maximum), single precision legitimately parts from PyTorch's. What is wrong is wrong on all of them."""
STIR = (0.1, 0.02)
"""How far weights are moved where a gradient is zero at first: as a share of their size, and beside it."""
NEARBY = 1e-6
"""Relative: by how much weights differ that show what kinks make of rounding (of Winograd's convolutions, too)."""
VARIETY = 2
"""Different batches of an update that several steps share."""

log = logging.getLogger("pock_tvm")


@dataclass
class SelfCheck:
    """Checks a compiled program against a reference."""

    model: Model
    program: Program
    reference: Reference
    optimizer: Optimizer
    compile_model: Callable[[Model], Program]
    """Compiles a variant of the model in the same way, and does not check it."""
    given: tuple[Any, Any] | None = None
    """A user's batch, x and y."""

    def run(self) -> dict[str, Any]:
        """Check; what a manifest says of it.

        Raises
        ------
        CheckError
            The program does not do what the reference does.
        """
        start = time.perf_counter()
        self.loss = Loss(**self.program.manifest["loss"])
        self.probe = Probe(self.program)
        self.comparison = Comparison(self._seen, coupled_decay(self.optimizer))
        unchecked = self.comparison.unchecked
        weights = dict(self.program.weights)
        ours, batches = self._agree(weights)
        self._check_update(weights, batches, ours)
        silent = [name for name, why in unchecked.items() if why == ZERO]
        if silent:  # a comparison of zeros proves nothing: once more, where nothing is zero
            for name in silent:
                del unchecked[name]
            self._agree(_stirred(weights, self.model.parameters))
        if not self.probe.tells_gradients:
            unchecked |= dict.fromkeys(self.program.trained, "an Adam without epsilon hides its gradient")
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
            "seconds": round(seconds, 2),
        }

    def _agree(self, weights: Weights) -> tuple[Measured, list[Batch]]:
        """Compare on one batch after the other until each quantity has agreed on some batch."""
        failing: dict[str, Difference] | None = None
        for attempt in range(ATTEMPTS):
            batches, theirs = self._batches(weights, attempt)
            if attempt == 0:
                self._refuse_randomness(weights, batches[0])
            ours = self.probe.measure(weights, batches)
            plain = self._without_decay(weights, ours, theirs)
            nearby = functools.partial(self._nearby, weights, batches)
            exact = functools.partial(self._exact, weights, batches)
            faults = self.comparison.faults(weights, plain, theirs, nearby, exact)
            failing = faults if failing is None else {name: faults[name] for name in failing if name in faults}
            if not failing:
                if not theirs.gradients and is_finite(ours):
                    self._check_directions(weights, batches, plain)
                return ours, batches
        raise CheckError(self._message(failing or {}, weights, batches[0]))

    def _check_update(self, weights: Weights, batches: list[Batch], ours: Measured) -> None:
        """The same step again, which has to give the same loss, and an update with the optimizer's state filled."""
        losses, after = self.probe.update(weights, batches)
        if not np.array_equal(losses, ours.losses, equal_nan=True):
            raise CheckError(f"the same step gives the loss {ours.losses[0]:.9g} and then {losses[0]:.9g}. {REPORT}")
        if importlib.util.find_spec("torch") is None:
            self.comparison.unchecked["the optimizer"] = "PyTorch is not installed"
        elif is_finite(ours) and ours.gradients:
            from .update import check_updates

            check_updates(self.optimizer, self.program.trained, ours.gradients, weights, after)

    def _check_directions(self, weights: Weights, batches: list[Batch], ours: Measured) -> None:
        """Finite differences where the reference knows no gradients."""
        trained, options = self.program.trained, self.program.manifest["options"]
        if options["clip_norm"] is not None or not ours.gradients:
            why = "gradients that are clipped cannot be told from differences of the loss"
            self.comparison.unchecked |= dict.fromkeys(trained, why)
            return
        gradients = {name: g for name, g in ours.gradients.items() if g is not None}
        self.comparison.unchecked |= {name: ZERO for name, gradient in gradients.items() if not gradient.any()}
        directions = Directions(lambda moved: self.probe.loss(moved, batches), trained)
        self.comparison.unchecked |= directions.check(weights, gradients, self.model.parameters)

    # ---- the batches -------------------------------------------------------------------------------------------------

    def _batches(self, weights: Weights, attempt: int) -> tuple[list[Batch], Measured]:
        """The batches of one update, and what the reference makes of them."""
        steps = int(self.program.manifest["options"]["accumulate"])
        if self.given is not None:
            given = self.probe.checked(*self.given)
            batches = [varied(given, attempt) if attempt else given] * steps
            return batches, self.reference.measure(weights, batches)
        best: tuple[list[Batch], Measured] | None = None
        refusal: Exception | None = None
        for make in synthetic_batches(self.model, self.loss, self.program.index_limits, attempt):
            variety = [make(number) for number in range(min(steps, VARIETY))]
            batches = [variety[step % len(variety)] for step in range(steps)]
            try:
                theirs = self.reference.measure(weights, batches)
            except (RuntimeError, IndexError, ValueError) as error:  # the framework itself refuses such values
                refusal = error
                continue
            best = best or (batches, theirs)
            if is_finite(theirs):
                return batches, theirs
        if best is None:
            raise CheckError(
                f"no synthetic batch runs in {self.reference.name} ({refusal}): give one that does, "
                "compile(check_with=(x, y)), or compile with check=False"
            )
        return best

    def _nearby(self, weights: Weights, batches: list[Batch]) -> Measured | None:
        try:
            return self.reference.measure(_nearby(weights), batches)
        except (RuntimeError, IndexError, ValueError):  # on the edge of what the framework takes
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

    def _seen(self, measured: Measured) -> dict[str, np.ndarray]:
        """The reference's gradients of what is trained, clipped."""
        trained, largest = self.program.trained, self.program.manifest["options"]["clip_norm"]
        kept = {name: masked(g, trained[name]) for name, g in measured.gradients.items() if g is not None}
        if largest is not None and kept:
            from .update import clipped

            kept = clipped(kept, largest)
        weights = self.program.weights
        return {name: kept[name] if name in kept else np.zeros_like(weights[name]) for name in measured.gradients}

    def _without_decay(self, weights: Weights, ours: Measured, theirs: Measured) -> Measured:
        """The program's gradients alone. What no gradient reaches PyTorch's optimizers leave as it is, decay and all:
        there all that moves counts."""
        decay = coupled_decay(self.optimizer)
        trained = self.program.trained
        unreached = {name for name, gradient in theirs.gradients.items() if gradient is None}
        gradients: dict[str, np.ndarray | None] = {
            name: g - np.float32(decay) * masked(weights[name], trained[name]) if decay and name not in unreached else g
            for name, g in ours.gradients.items()
            if g is not None
        }
        return replace(ours, gradients=gradients)

    # ---- what to say -------------------------------------------------------------------------------------------------

    def _message(self, failing: dict[str, Difference], weights: Weights, batch: Batch) -> str:
        """The first layer that differs; else the gradient that is closest to the loss."""
        name, reference = next(iter(failing)), self.reference.name
        if not name.startswith(GRADIENT):
            found = self._first_wrong_layer(weights, batch)
            layer = f"the first layer that differs is {found[0]}: {found[1]}" if found else f"{name} is {failing[name]}"
            return f"the program does not compute what {reference} does: {layer}. {REPORT}"
        order = [gradient_of(parameter) for parameter in self.model.parameters]
        name = max(failing, key=order.index)
        others = f" ({len(failing) - 1} further gradients differ)" if len(failing) > 1 else ""
        return f"the program does not train as {reference} does: {name} is {failing[name]}{others}. {REPORT}"

    def _first_wrong_layer(self, weights: Weights, batch: Batch) -> tuple[str, Difference] | None:
        try:
            return first_wrong_layer(self.model, self.reference, weights, batch, self.compile_model)
        except PockError as error:  # the outputs are known to differ: that is what has to be said
            log.info("which layer differs first cannot be told: %s", error)
            return None


REPORT = "This is a fault of the compiler: please report it with the model. Compiled with check=False it stays wrong"


def _stirred(weights: Weights, parameters: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Weights at random near to what they are, so that no gradient is zero because a weight is."""
    rng = np.random.default_rng(0)
    share, beside = STIR
    moved = dict(weights)
    for name in parameters:
        array = weights[name]
        size = share * float(np.sqrt(np.mean(np.square(array, dtype="float64")))) + beside if array.size else 0.0
        moved[name] = (array + size * rng.standard_normal(array.shape)).astype(array.dtype)
    return moved


def _nearby(weights: Weights) -> dict[str, np.ndarray]:
    """Weights that differ by what rounding does to a layer's values."""
    rng = np.random.default_rng(0)
    return {
        name: (array * (1 + NEARBY * rng.standard_normal(array.shape))).astype(array.dtype)
        if array.dtype.kind == "f"
        else array
        for name, array in weights.items()
    }
