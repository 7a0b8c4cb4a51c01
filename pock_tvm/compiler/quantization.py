"""Calibration: what a frozen prefix does on a user's data, and the passes that compute it in eight bits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from tvm import IRModule, relax

from relay_passes import DropMarks, MarkScales, QuantizeFrozen
from relay_passes.analysis.frozen_prefix import FrozenPrefix, frozen_prefix
from relay_passes.analysis.layer_numbers import Numbers, choose_numbers, needed, observed
from relay_passes.analysis.observations import Observations
from relay_passes.analysis.stated_scales import StatedScales, marked_scales
from relay_passes.ir import bindings_of, dtype_of, shape_of, used_vars

from ..errors import DataError, NothingFrozenError, OptionError
from ..frontend import Model
from .calibration_data import calibration_batches
from .evaluation import Evaluation
from .kernel_builder import KernelBuilder
from .parameters import Parameters, without
from .phases import Phases
from .sensitive_layers import SensitiveLayers
from .targets import resolve_target
from .training_options import FLOAT32, FORWARD, PREDICT, TRAIN


@dataclass
class Calibration:
    """Data to calibrate with, and what was found on it."""

    batches: Sequence[Mapping[str, np.ndarray]]
    """Inputs of the network by name; none where the model states its scales, or for a plan."""
    stated: StatedScales = field(default_factory=StatedScales)
    max_drop: float | None = None
    """Largest drop of the outputs (:mod:`pock_tvm.compiler.sensitive_layers`); None does not limit it."""
    drop: float | None = None
    """Measured drop, where it is limited."""
    is_plan: bool = False
    """Whether nothing will run, so that any numbers do."""
    numbers: Numbers | None = None
    prefix: FrozenPrefix = field(default_factory=FrozenPrefix)
    quantized: relax.Function | None = None
    """``predict`` in eight bits, before later phases."""
    unread: list[str] = field(default_factory=list)
    """Frozen parameters that only layers in eight bits had read."""

    def mark(self, phases: Phases) -> None:
        """Begin of phase 2: mark the values whose scales the model states."""
        if self.stated:
            phases.run(2, "marked", [MarkScales(self.stated.values, FORWARD)])

    def quantize(self, phases: Phases, trained: Sequence[str], word_planes: bool = False) -> None:
        """End of phase 2: compute the frozen prefix of ``train_step`` and ``predict`` in eight bits. Frozen parameters
        that only its layers had read are dropped. ``word_planes``: see :class:`QuantizeFrozen`.

        Raises
        ------
        DataError
            A value is not finite on the calibration data.
        NothingFrozenError
            No layer can be computed in eight bits.
        """
        marked = marked_scales(phases.mod[PREDICT])
        if self.stated:
            phases.run(2, "unmarked", [DropMarks(TRAIN), DropMarks(PREDICT)])
        func = phases.mod[PREDICT]
        if self.numbers is None:
            excluded = _behind_draws(phases.mod, trained)
            stated = replace(self.stated, values=marked)
            self.numbers = self._numbers(func, trained, phases.parameters, stated, excluded)
        self.prefix = frozen_prefix(func, trained, self.numbers.excluded)
        if not self.prefix.layers:
            reasons = "".join(f"; '{name}': {why}" for name, why in self.prefix.floats.items())
            raise NothingFrozenError(
                "frozen='int8' finds no layer to compute in eight bits: none with a frozen weight stands before the "
                f"first trained parameter{reasons}. Leave it out, or train less"
            )
        passes = [QuantizeFrozen(trained, self.numbers, name, word_planes) for name in (TRAIN, PREDICT)]
        phases.run(2, "quantized", passes)
        self.quantized = func = phases.mod[PREDICT]
        read = {var.name for binding in bindings_of(func) for var in used_vars(binding.value)}
        self.unread = [param.name for param in func.params[int(func.attrs["num_input"]) :] if param.name not in read]
        phases.parameters = without(phases.parameters, self.unread)

    def report(self) -> dict[str, Any]:
        """Return what a manifest says: the layers in eight bits, and those of the prefix that stay float."""
        layers = [
            {"name": layer.name, "kind": layer.kind, "stored": self.prefix.requantizes(layer)}
            for layer in self.prefix.layers.values()
        ]
        report = {"layers": layers, "float": dict(self.prefix.floats), "parameters": list(self.unread)}
        return report if self.drop is None else report | {"drop": self.drop}

    def _numbers(
        self,
        func: relax.Function,
        trained: Sequence[str],
        parameters: Parameters,
        stated: StatedScales,
        always: Mapping[str, str],
    ) -> Numbers:
        """Observe the prefix on the data, and choose its numbers. ``always``: layers that stay float, with the
        reason."""
        if self.is_plan:
            return _any_numbers(func, trained, always)
        builder = KernelBuilder(resolve_target("host"))
        weights = {name: each.store(each.initial) for name, each in parameters.items() if each.initial is not None}
        batches = [{**batch, **weights} for batch in self.batches]
        zeros = {param.name: np.zeros(shape_of(param), dtype_of(param)) for param in func.params}
        arrays = _arrays(func, trained, {**zeros, **weights}, set(weights), builder)
        seen = _seen(func, trained, batches, builder) if batches else {}

        def choose(excluded: Mapping[str, str]) -> Numbers:
            return choose_numbers(func, trained, seen, arrays, {**always, **excluded}, stated)

        if self.max_drop is None:
            return choose({})
        found = SensitiveLayers(func, trained, choose, batches, builder).within(self.max_drop)
        self.drop = found.drop
        return found.numbers


def _behind_draws(mod: IRModule, trained: Sequence[str]) -> dict[str, str]:
    """Return the layers that a step computes of what it draws, with the reason why they stay float."""
    step, predict = (frozen_prefix(mod[name], trained).layers.values() for name in (TRAIN, PREDICT))
    names = {layer.name for layer in predict} - {layer.name for layer in step}
    return dict.fromkeys(names, "it reads what a step draws numbers for, such as dropout; calibration lacks them")


def _any_numbers(func: relax.Function, trained: Sequence[str], excluded: Mapping[str, str]) -> Numbers:
    """Choose numbers of a plan, whose costs do not depend on them."""
    seen = {var.name: Observations(-1.0, 1.0) for var in observed(func, trained)}
    for var in observed(func, trained):
        seen[var.name].see(np.zeros(shape_of(var)[-1:], "float32"))
    arrays = {var.name: np.zeros(shape_of(var), "float32") for var in needed(func, trained)}
    return choose_numbers(func, trained, seen, arrays, excluded)


Values = Mapping[str, np.ndarray]
"""Of a function's parameters, by name: a batch of inputs, and the weights."""


def _seen(
    func: relax.Function, trained: Sequence[str], batches: Sequence[Values], builder: KernelBuilder
) -> dict[str, Observations]:
    """Observe the values of the prefix that may be stored in eight bits."""
    values = observed(func, trained)
    seen = {value.name: Observations() for value in values}
    if not values:
        return seen
    evaluation = Evaluation(func, values, builder)
    for batch in batches:
        for value, array in zip(values, evaluation.run(batch), strict=True):
            if not np.isfinite(array).all():
                raise DataError(
                    f"the value '{value.name}' is not finite on the calibration data: look for NaN and infinities in "
                    "the data, and in the weights"
                )
            seen[value.name].see(array)
    return seen


def _arrays(
    func: relax.Function, trained: Sequence[str], values: Values, known: Collection[str], builder: KernelBuilder
) -> dict[str, np.ndarray]:
    """Return the weights and biases of the prefix as its layers read them. ``values``: of the function's parameters,
    whose inputs do not matter; ``known``: names of weights."""
    vectors = needed(func, trained)
    made = [each for each in vectors if each.name not in known]
    arrays = {each.name: values[each.name] for each in vectors if each.name in known}
    if made:
        arrays |= {
            each.name: array for each, array in zip(made, Evaluation(func, made, builder).run(values), strict=True)
        }
    return arrays


def calibration_for(
    frozen: str,
    data: Any,
    max_drop: float | None,
    model: Model,
    *,
    build: bool,
    is_gpu: bool,
    precision: str,
    batch_norm: str,
) -> Calibration | None:
    """Return the calibration of a compile whose options are these; None if frozen layers stay float.

    Raises
    ------
    OptionError
        An option does not go with layers in eight bits, or there is no data. Errors of the data: as
        :func:`calibration_batches`.
    """
    if frozen == FLOAT32:
        if data is not None:
            raise OptionError("calibrate_with is data for frozen='int8': give that too, or leave it out")
        if max_drop is not None:
            raise OptionError("max_drop= is for frozen='int8': give that too, or leave it out")
        return None
    if data is None and max_drop is not None:
        raise OptionError("max_drop= is measured on samples: give calibrate_with, or --calibrate DIR, too")
    if data is None and build and not model.stated:
        raise OptionError("frozen='int8' needs data to take ranges from: calibrate_with, or --calibrate DIR")
    if is_gpu:
        raise OptionError("frozen='int8' is for CPUs, and this target is a GPU: leave it out, or compile for a CPU")
    if precision != FLOAT32:
        raise OptionError(f"frozen='int8' goes with precision='float32', not with {precision!r}")
    if batch_norm == "batch":
        raise OptionError(
            "frozen='int8' needs batch norms with frozen statistics, which ranges are taken with: leave out "
            "batch_norm='batch', or frozen"
        )
    batches = [] if data is None else calibration_batches(data, model.inputs)
    return Calibration(batches, model.stated, max_drop, is_plan=not build and data is None)
