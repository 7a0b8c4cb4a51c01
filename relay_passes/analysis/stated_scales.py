"""Scales that a quantised model states of its own values and weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from tvm import relax

from ..ir import bindings_of, op_name
from ..operators.registry import attributes_of
from .fixed_point import EightBits

MARK = "pock.stated_scale"


@dataclass(frozen=True)
class StatedScales:
    """Scales of a model's values, and of its weights."""

    values: Mapping[str, EightBits] = field(default_factory=dict)
    """By name of the value in the forward function."""
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By name of the parameter, which holds multiples of them: of each output channel [C_out], or one of all [1]."""

    def __bool__(self) -> bool:
        return bool(self.values or self.weights)


def marked_scales(func: relax.Function) -> dict[str, EightBits]:
    """Return the scales that marks (:class:`relay_passes.MarkScales`) state, by the name of the marked value."""
    calls = [binding.value for binding in bindings_of(func) if op_name(binding.value) == MARK]
    return {
        call.args[0].name: EightBits(**attributes_of(call)) for call in calls if isinstance(call.args[0], relax.Var)
    }
