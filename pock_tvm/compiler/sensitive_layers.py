"""Leaves layers float that lose most in eight bits, until the outputs are near enough to those in float.

The *drop* is how far the outputs are from those in float on the calibration data: the norm of the difference, relative
to that of the outputs, of the output where it is largest. A head that is not trained yet has no accuracy to lose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import IRModule, relax

from relay_passes import QuantizeFrozen
from relay_passes.analysis.layer_numbers import Numbers
from relay_passes.canonical.quantize_alone import quantize_alone
from relay_passes.ir import returned

from ..errors import OptionError
from .evaluation import Evaluation
from .kernel_builder import KernelBuilder
from .training_options import PREDICT


@dataclass(frozen=True)
class Found:
    """Numbers with which the drop is within its limit."""

    numbers: Numbers
    drop: float


class SensitiveLayers:
    """Search for the layers to leave float.

    Layers are ordered by what each loses alone: the norm of what eight bits of its input and weights change of its
    product, relative to that of the product, computed from float values on the calibration data. How many of the first
    stay float is bisected.
    """

    def __init__(
        self,
        func: relax.Function,
        trained: Sequence[str],
        choose: Callable[[Mapping[str, str]], Numbers],
        batches: Sequence[Mapping[str, np.ndarray]],
        builder: KernelBuilder,
    ) -> None:
        """Compute the outputs in float. ``choose`` returns numbers without some layers, given with the reason;
        ``batches`` are values of the function's parameters."""
        self._func, self._trained, self._choose = func, trained, choose
        self._batches, self._builder = batches, builder
        self._floats = self._outputs(func)
        if not all(any(map(np.any, output)) for output in zip(*self._floats, strict=True)):
            raise OptionError(
                "max_drop= limits how far outputs are from those in float, and they are zero here: the head has zeros "
                "for weights. Leave it out, or give the head other weights"
            )

    def within(self, max_drop: float) -> Found:
        """Return the numbers of as many layers as the limit allows.

        Raises
        ------
        OptionError
            Not even one layer can be in eight bits.
        """
        numbers = self._choose({})
        found = Found(numbers, self._drop(numbers))
        if found.drop <= max_drop:
            return found
        errors = self._errors(numbers)
        order = sorted(errors, key=lambda name: -errors[name])
        low, high, best, failed = 0, len(order), None, found
        while high - low > 1:
            middle = (low + high) // 2
            reasons = {
                name: f"alone it changes its product by {errors[name]:.1%} (max_drop)" for name in order[:middle]
            }
            numbers = self._choose(reasons)
            found = Found(numbers, self._drop(numbers))
            if found.drop <= max_drop:
                high, best = middle, found
            else:
                low, failed = middle, found
        if best is None:
            raise OptionError(
                f"max_drop={max_drop:g} leaves no layer to compute in eight bits: with the least sensitive one alone, "
                f"'{order[-1]}', outputs are {failed.drop:.2g} from those in float. Allow more, or leave out "
                "frozen='int8'"
            )
        return best

    def _drop(self, numbers: Numbers) -> float:
        """Measure the drop with some numbers."""
        passes = tvm.transform.Sequential([QuantizeFrozen(self._trained, numbers, PREDICT)])
        outputs = self._outputs(passes(IRModule({PREDICT: self._func}))[PREDICT])
        drops = []
        for ours, floats in zip(zip(*outputs, strict=True), zip(*self._floats, strict=True), strict=True):
            if floats[0].dtype.kind == "f":
                lost = sum(_square(a - b) for a, b in zip(ours, floats, strict=True))
                drops.append(math.sqrt(lost / sum(map(_square, floats))))
        return max(drops)

    def _outputs(self, func: relax.Function) -> list[list[np.ndarray]]:
        """Compute the outputs on each batch."""
        evaluation = Evaluation(func, returned(func), self._builder)
        return [evaluation.run(batch) for batch in self._batches]

    def _errors(self, numbers: Numbers) -> dict[str, float]:
        """Measure what each layer loses alone, by its name."""
        func, layers = quantize_alone(self._func, self._trained, numbers)
        evaluation = Evaluation(func, returned(func), self._builder)
        sums = np.sum([[float(each.item()) for each in evaluation.run(batch)] for batch in self._batches], axis=0)
        errors: dict[str, float] = {}
        for at, layer in enumerate(layers):
            lost, whole = sums[2 * at], sums[2 * at + 1]
            errors[layer.name] = max(errors.get(layer.name, 0.0), math.sqrt(lost / whole) if whole else math.inf)
        return errors


def _square(array: np.ndarray) -> float:
    return float(np.square(array, dtype=np.float64).sum())
