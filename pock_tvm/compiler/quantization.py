"""Calibration: the ranges of a frozen prefix over a user's data, and the passes that compute it in eight bits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm import relax

from relay_passes import QuantizeFrozen
from relay_passes.analysis.fixed_point import eight_bits
from relay_passes.canonical.quantize_frozen import Quantization, needed, observed, quantization
from relay_passes.ir import bindings_of, used_vars

from ..device.arguments import described
from ..device.arrays import as_array, check_array
from ..errors import DataError, InputError, OptionError
from ..frontend.model import TensorSpec
from .evaluation import Evaluation
from .kernel_builder import KernelBuilder
from .parameters import Parameters, without
from .phases import Phases
from .targets import resolve_target
from .training_options import FLOAT32, PREDICT, TRAIN

MOST_BATCHES = 16
"""Batches that are read: ranges change little beyond."""
SAMPLED = 2**16
"""Numbers of a value that are kept of each batch, to weigh clipping against rounding."""
SHARES = np.linspace(0.4, 1.0, 31)
"""Shares of the extremes that are tried as ends of a range."""


@dataclass
class Calibration:
    """Data to calibrate with, and what was found on it."""

    batches: Sequence[Mapping[str, np.ndarray]]
    """Inputs of the network by name."""
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    means: dict[str, np.ndarray] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    plan: Quantization = field(default_factory=Quantization)
    quantized: relax.Function | None = None
    """``predict`` in eight bits, before later phases."""
    unread: list[str] = field(default_factory=list)
    """Frozen parameters that only layers in eight bits had read."""

    def quantize(self, phases: Phases, trained: Sequence[str]) -> None:
        """End of phase 2: compute the frozen prefix of ``train_step`` and ``predict`` in eight bits. Frozen parameters
        that only its layers had read are dropped.

        Raises
        ------
        DataError
            A value is not finite on the calibration data.
        OptionError
            No layer can be computed in eight bits.
        """
        func = phases.mod[PREDICT]
        if not self.ranges:
            self._calibrate(func, trained, phases.parameters)
        self.plan = quantization(func, trained, self.ranges, self.means, self.arrays)
        if not self.plan.prefix.layers:
            reasons = "".join(f"; '{name}': {why}" for name, why in self.plan.prefix.floats.items())
            raise OptionError(
                "frozen='int8' finds no layer to compute in eight bits: none with a frozen weight stands before the "
                f"first trained parameter{reasons}. Leave it out, or train less"
            )
        phases.run(
            2,
            "quantized",
            [QuantizeFrozen(trained, self.ranges, self.means, self.arrays, name) for name in (TRAIN, PREDICT)],
        )
        self.quantized = func = phases.mod[PREDICT]
        read = {var.name for binding in bindings_of(func) for var in used_vars(binding.value)}
        self.unread = [param.name for param in func.params[int(func.attrs["num_input"]) :] if param.name not in read]
        phases.parameters = without(phases.parameters, self.unread)

    def report(self) -> dict[str, Any]:
        """Return what a manifest says: the layers in eight bits, and those of the prefix that stay float."""
        layers = [
            {"name": layer.name, "kind": layer.kind, "stored": self.plan.prefix.requantizes(layer)}
            for layer in self.plan.prefix.layers.values()
        ]
        return {"layers": layers, "float": dict(self.plan.prefix.floats), "parameters": list(self.unread)}

    def _calibrate(self, func: relax.Function, trained: Sequence[str], parameters: Parameters) -> None:
        builder = KernelBuilder(resolve_target("host"))
        weights = {name: each.store(each.initial) for name, each in parameters.items() if each.initial is not None}
        values, vectors = observed(func, trained), needed(func, trained)
        if not values:
            return
        evaluation = Evaluation(func, values, builder)
        seen = [_Range() for _ in values]
        for batch in self.batches:
            for found, value, array in zip(seen, values, evaluation.run({**batch, **weights}), strict=True):
                if not np.isfinite(array).all():
                    raise DataError(
                        f"the value '{value.name}' is not finite on the calibration data: look for NaN and infinities "
                        "in the data, and in the weights"
                    )
                found.see(array)
        self.ranges = {value.name: each.chosen() for value, each in zip(values, seen, strict=True)}
        self.means = {value.name: np.mean(each.means, axis=0) for value, each in zip(values, seen, strict=True)}
        self.arrays = {each.name: weights[each.name] for each in vectors if each.name in weights}
        made = [each for each in vectors if each.name not in weights]
        if made:
            arrays = Evaluation(func, made, builder).run({**self.batches[0], **weights})
            self.arrays |= {each.name: array for each, array in zip(made, arrays, strict=True)}


@dataclass
class _Range:
    """Range of a value over batches."""

    low: float = 0.0
    high: float = 0.0
    means: list[np.ndarray] = field(default_factory=list)
    """By channel, of each batch."""
    sampled: list[np.ndarray] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def see(self, array: np.ndarray) -> None:
        self.low, self.high = min(self.low, float(array.min())), max(self.high, float(array.max()))
        self.means.append(array.reshape(-1, array.shape[-1]).mean(axis=0, dtype=np.float64))
        flat = array.reshape(-1)
        # At random: regular steps would see some channels alone.
        self.sampled.append(self.rng.choice(flat, SAMPLED) if flat.size > SAMPLED else flat.copy())

    def chosen(self) -> tuple[float, float]:
        """Return the ends with the least mean square error of rounding and clipping."""
        x = np.concatenate(self.sampled)

        def error(share: float) -> float:
            numbers = eight_bits(share * self.low, share * self.high)
            q = np.clip(np.rint(x / numbers.scale) + numbers.zero, 0, 255)
            return float(np.mean(np.square((q - numbers.zero) * numbers.scale - x)))

        best = float(min(SHARES[::-1], key=error))
        return best * self.low, best * self.high


def calibration_for(
    frozen: str, data: Any, specs: Sequence[TensorSpec], *, is_gpu: bool, precision: str, batch_norm: str
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
        return None
    if data is None:
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
    return Calibration(calibration_batches(data, specs))


def calibration_batches(data: Any, specs: Sequence[TensorSpec]) -> list[dict[str, np.ndarray]]:
    """Read batches of a network's inputs, at most :data:`MOST_BATCHES`.

    ``data`` is an array of samples, a mapping from inputs to such arrays, or a sequence of batches ``(x, y)`` whose
    ``x`` is one of both. A last, smaller batch is filled up with its own samples.

    Raises
    ------
    DataError
        There are no samples.
    InputError
        An input is missing, or has another shape or type.
    """
    found: list[dict[str, np.ndarray]] = []
    for x in _parts(data):
        arrays = _named(x, specs)
        batch = specs[0].shape[0] if specs[0].shape else 1
        count = len(next(iter(arrays.values()))) if specs[0].shape else 1
        for start in range(0, count, batch):
            if len(found) == MOST_BATCHES:
                return found
            part = {name: _filled(array, start, batch) for name, array in arrays.items()}
            for spec in specs:
                check_array(f"input '{spec.name}' of the calibration data", part[spec.name], spec.shape, spec.dtype)
                if not np.isfinite(part[spec.name]).all():
                    raise DataError(
                        f"input '{spec.name}' of the calibration data is not finite: leave such samples out"
                    )
            found.append(part)
    if not found:
        raise DataError("the calibration data holds no samples: frozen='int8' takes ranges from some hundred")
    return found


def _parts(data: Any) -> Iterator[Any]:
    if isinstance(data, Mapping) or hasattr(data, "shape"):
        yield data
        return
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise InputError(
            f"calibrate_with is an array of samples, or a sequence of batches (x, y), not {described(data)}"
        )
    for batch in data:
        yield batch[0] if isinstance(batch, tuple | list) else batch


def _named(x: Any, specs: Sequence[TensorSpec]) -> dict[str, np.ndarray]:
    names = [spec.name for spec in specs]
    given = dict(x) if isinstance(x, Mapping) else dict(zip(names, [x], strict=False))
    wrong = [name for name in names if name not in given] or [name for name in given if name not in names]
    if wrong:
        is_missing = wrong[0] in names
        raise InputError(
            f"the calibration data has {'no' if is_missing else 'an'} input '{wrong[0]}': give a mapping from the "
            f"network's inputs ({', '.join(names)}) to arrays"
        )
    return {name: as_array(f"input '{name}' of the calibration data", given[name]) for name in names}


def _filled(array: np.ndarray, start: int, batch: int) -> np.ndarray:
    part = array[start : start + batch] if array.ndim else array
    return part if not array.ndim or len(part) == batch else np.resize(part, (batch, *part.shape[1:]))
