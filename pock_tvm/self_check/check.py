"""The self-check: a program takes the step that its model's own framework takes, or it does not exist."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import CheckError
from ..frontend import Model
from ..losses import Loss
from ..optimizers import Optimizer
from ..program import Program
from .agreement import NOISE, NOTHING, Difference, difference, relative_difference
from .batches import synthetic_batches, varied
from .blame import first_wrong_layer
from .measured import Batch, Measured, Reference, Weights
from .probe import Probe, is_finite

ATTEMPTS = 3
"""Batches that are tried before two results count as different: where rounding puts a value on the other side of a kink
(ReLU, a maximum), single precision legitimately parts from PyTorch's. What is wrong is wrong on all of them."""
STIR = (0.1, 0.02)
"""How far weights are moved where a gradient is zero at first: as a share of their size, and beside it."""
VARIETY = 2
"""Different batches of an update that several steps share."""
RATE = 0.125
"""The learning rate of the update that is compared with PyTorch's optimizer."""
UPDATE = 1e-5
"""Relative, for each element: how far an update may be off, beside the rounding of its weight."""

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
    worst: tuple[float, str] = (0.0, "")
    unchecked: dict[str, str] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """Check; what a manifest says of it.

        Raises
        ------
        CheckError
            The program does not do what the reference does.
        """
        start = time.perf_counter()
        manifest = self.program.manifest
        self.loss = Loss(**manifest["loss"])
        self.probe = Probe(self.program)
        if not self.probe.tells_gradients:
            self.unchecked |= dict.fromkeys(self.program.trained, "an Adam without epsilon hides its gradient")
        weights = dict(self.program.weights)
        ours, batches = self._compare(weights)
        self._check_update(weights, batches, ours)
        silent = [name for name in self.program.trained if self.unchecked.get(name) == ZERO]
        if silent:  # a comparison of zeros proves nothing
            for name in silent:
                del self.unchecked[name]
            self._compare(_stirred(weights, self.model.parameters))
        seconds = time.perf_counter() - start
        log.info(
            "checked against %s in %.1f s: the largest difference is %.1e (%s)%s",
            self.reference.name,
            seconds,
            *self.worst,
            f"; not checked: {', '.join(self.unchecked)}" if self.unchecked else "",
        )
        return {
            "against": self.reference.name,
            "batch": "synthetic" if self.given is None else "given",
            "worst": {"difference": self.worst[0], "of": self.worst[1]},
            "unchecked": self.unchecked,
            "seconds": round(seconds, 2),
        }

    # ---- one point of the weights --------------------------------------------------------------------------------

    def _compare(self, weights: Weights) -> tuple[Measured, list[Batch]]:
        """Compare on one batch after the other until each result has agreed on some batch."""
        failing: dict[str, Difference] | None = None
        for attempt in range(ATTEMPTS):
            batches, theirs = self._batches(weights, attempt)
            if attempt == 0:
                self._refuse_randomness(weights, batches[0])
            ours = self.probe.measure(weights, batches)
            faults = self._faults(weights, batches, ours, theirs)
            failing = faults if failing is None else {name: faults[name] for name in failing if name in faults}
            if not failing:
                return ours, batches
        assert failing
        raise CheckError(self._message(failing, weights, batches[0]))

    def _batches(self, weights: Weights, attempt: int) -> tuple[list[Batch], Measured]:
        """The batches of one update, and what the reference makes of them."""
        steps = int(self.program.manifest["options"]["accumulate"])
        if self.given is not None:
            checked = self.probe.checked(*self.given)
            batches = [varied(checked, attempt) if attempt else checked] * steps
            return batches, self.reference.measure(weights, batches)
        limits = self.program.manifest["index_limits"]
        best: tuple[list[Batch], Measured] | None = None
        refusal: Exception | None = None
        for make in synthetic_batches(self.model, self.loss, limits, attempt):
            variety = [make(number) for number in range(min(steps, VARIETY))]
            batches = [variety[step % len(variety)] for step in range(steps)]
            try:
                theirs = self.reference.measure(weights, batches)
            except (RuntimeError, IndexError, ValueError) as error:  # PyTorch itself refuses such values
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

    def _refuse_randomness(self, weights: Weights, batch: Batch) -> None:
        layer = self.reference.random_layer(weights, batch)
        if layer is not None:
            raise CheckError(
                f"the model draws random numbers in {layer}: the same input gives another result each time, which a "
                "compiled program cannot follow. Give the numbers as a further input of the model, or export it without"
            )

    # ---- what is compared ----------------------------------------------------------------------------------------

    def _faults(
        self, weights: Weights, batches: list[Batch], ours: Measured, theirs: Measured
    ) -> dict[str, Difference]:
        """What differs, by name: outputs, losses, statistics, gradients."""

        @functools.cache
        def exact() -> Measured | None:
            try:
                return self.reference.measure(weights, batches, precise=True)
            except (RuntimeError, NotImplementedError) as error:
                log.info("%s cannot run this model in double precision: %s", self.reference.name, error)
                return None

        faults: dict[str, Difference] = {}

        def compare(what: str, *pair: np.ndarray, read: Callable[[Measured], Any], floor: float) -> None:
            def judge() -> np.ndarray | None:
                measured = exact()
                return None if measured is None else read(measured)

            found = difference(*pair, judge, floor)
            if found is not None:
                faults[what] = found
            else:
                self.worst = max(self.worst, (relative_difference(*pair), what) if _norm(pair[1]) > floor else (0.0, ""))

        if len(ours.outputs) != len(theirs.outputs):
            raise CheckError(
                f"the program has {len(ours.outputs)} outputs, and {self.reference.name}'s model {len(theirs.outputs)}"
            )
        for index, pair in enumerate(zip(ours.outputs, theirs.outputs, strict=True)):
            if pair[0].shape != pair[1].shape:
                raise CheckError(
                    f"output {index} has the shape {pair[0].shape}, and {pair[1].shape} in {self.reference.name}"
                )
            floor = SMALLEST * float(np.sqrt(pair[1].size))
            compare(f"output {index}", *pair, read=lambda m, i=index: m.outputs[i], floor=floor)
        compare(
            "the loss",
            np.array(ours.losses),
            np.array(theirs.losses),
            read=lambda m: np.array(m.losses),
            floor=SMALLEST,
        )
        for name in ours.statistics:
            rounding = 4 * np.finfo("float32").eps * _norm(weights[name])
            compare(
                f"the running statistic '{name}'",
                ours.statistics[name],
                theirs.statistics[name],
                read=lambda m, name=name: m.statistics[name],
                floor=rounding,
            )
        if is_finite(theirs) and self.probe.tells_gradients:
            self._compare_gradients(weights, ours, theirs, exact, compare)
        return faults

    def _compare_gradients(
        self, weights: Weights, ours: Measured, theirs: Measured, exact: Callable[[], Measured | None], compare: Any
    ) -> None:
        wanted = self._as_seen(weights, theirs)

        @functools.cache
        def exactly() -> dict[str, np.ndarray] | None:
            measured = exact()
            return None if measured is None else self._as_seen(weights, measured)

        sizes = {name: _norm(gradient) for name, gradient in wanted.items()}
        largest = max(sizes.values(), default=0.0)
        for name, gradient in wanted.items():
            found, raw = ours.gradients[name], theirs.gradients[name]
            assert found is not None
            what = f"the gradient of '{name}'"
            floor = 0.0
            if raw is None or not raw.any():
                self.unchecked.setdefault(name, UNREACHED if raw is None else ZERO)
                floor = 0.0 if raw is None else NOISE * largest
            elif sizes[name] < NOISE * largest:
                precisely = exactly()
                if precisely is not None and _norm(precisely[name]) < NOTHING * largest:
                    self.unchecked.setdefault(name, NOUGHT)
                    floor = NOISE * largest
            compare(what, found, gradient, read=lambda _m, name=name: (exactly() or {})[name], floor=floor)

    def _as_seen(self, weights: Weights, measured: Measured) -> dict[str, np.ndarray]:
        """Gradients as the optimizer sees them: of what is trained, clipped, the coupled decay added."""
        from .torch_update import clipped, coupled_decay

        trained = self.program.trained
        masked = {
            name: None if gradient is None else _masked(gradient, trained[name])
            for name, gradient in measured.gradients.items()
        }
        decay = coupled_decay(self.optimizer)
        seen = {}
        for name, gradient in clipped(masked, self.program.manifest["options"]["clip_norm"]).items():
            if gradient is None:  # PyTorch's optimizers pass over it, its decay included
                seen[name] = np.zeros(weights[name].shape)
            else:
                seen[name] = gradient + decay * _masked(weights[name], trained[name]) if decay else gradient
        return seen

    def _check_update(self, weights: Weights, batches: list[Batch], ours: Measured) -> None:
        """Compare two updates with those that PyTorch's optimizer makes of the same gradients."""
        from .torch_update import DTYPES, second_update

        losses, after = self.probe.update(weights, batches, RATE)
        if not np.array_equal(losses, ours.losses, equal_nan=True):
            raise CheckError(f"the same step gives the loss {ours.losses[0]:.7g} and then {losses[0]:.7g}")
        if not (is_finite(ours) and self.probe.tells_gradients):
            return
        for name, what in self.program.trained.items():
            gradient = ours.gradients[name]
            if name not in after or gradient is None or not gradient.any():
                continue
            start = weights[name].astype("float64")
            close = False
            for dtype in DTYPES:
                expected = start + _masked(second_update(self.optimizer, start, gradient, RATE, dtype) - start, what)
                rounding = 4 * np.finfo("float32").eps * np.maximum(np.abs(start), np.abs(expected))
                gap = np.abs(after[name] - expected) - UPDATE * np.abs(expected - start) - rounding
                close = close or not (gap > 0).any()
                if close:
                    break
            if not close:
                at = np.unravel_index(int(gap.argmax()), gap.shape)
                kind = type(self.optimizer).__name__
                raise CheckError(
                    f"the update of '{name}' is not that of PyTorch's {kind}: at {[int(i) for i in at]} it goes from "
                    f"{start[at]:.7g} to {after[name][at]:.7g} instead of {expected[at]:.7g}. {REPORT}"
                )

    # ---- what to say ---------------------------------------------------------------------------------------------

    def _message(self, failing: dict[str, Difference], weights: Weights, batch: Batch) -> str:
        """The first layer that differs; else what is closest to the loss."""
        name = next(iter(failing))
        if not name.startswith("the gradient"):
            found = first_wrong_layer(self.model, self.reference, weights, batch, self.compile_model)
            if found is not None:
                return (
                    f"the program does not compute what {self.reference.name} does: the first layer that differs is "
                    f"{found[0]}: {found[1]}. {REPORT}"
                )
            return f"the program does not compute what {self.reference.name} does: {name} is {failing[name]}. {REPORT}"
        order = [f"the gradient of '{parameter}'" for parameter in self.model.parameters]
        name = max(failing, key=order.index)
        others = f" ({len(failing) - 1} further gradients differ)" if len(failing) > 1 else ""
        return f"the program does not train as {self.reference.name} does: {name} is {failing[name]}{others}. {REPORT}"


SMALLEST = 1e-7
"""A difference of one value that never counts."""
UNREACHED, ZERO = "no gradient reaches it", "its gradient is zero for a random batch"
NOUGHT = "its gradient is zero but for rounding"
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


def _masked(array: np.ndarray, what: Any) -> np.ndarray:
    """What is trained of an array, zero elsewhere."""
    if not isinstance(what, dict):
        return array
    kept = np.zeros_like(array)
    at: tuple[Any, ...] = (*[slice(None)] * what["axis"], what["indices"])
    kept[at] = array[at]
    return kept


def _norm(array: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(array, "float64").reshape(-1)))
