"""What training costs: memory as the planner plans it, work as the graph says, time by a model that was calibrated on
measured kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..device.program import Program, kernel_calls

Work = Mapping[str, Sequence[float]]
"""By the kind of kernel: calls, FLOPs, bytes."""


@dataclass(frozen=True)
class Cost:
    """What one training step takes."""

    memory: float
    """Bytes beside the weights: arena, optimizer state, gradient sums."""
    kept: float = 0.0
    """Those that are kept through the step: optimizer state, gradient sums, activations for the backward graph."""
    work: Work = field(default_factory=dict)
    state: float = 0.0
    """Those of optimizer state and gradient sums, which stay however few samples are in work at a time."""
    gradients: float = 0.0
    """The bytes of all gradients together, which micro-batches sum."""

    @property
    def flops(self) -> float:
        """Of all kernels, two for each multiplication of a product."""
        return sum(flops for _, flops, _ in self.work.values())

    @property
    def bytes(self) -> float:
        """Every operand of every kernel read or written once."""
        return sum(size for _, _, size in self.work.values())

    def minus(self, other: Cost) -> Cost:
        """What this takes more than another."""
        kinds = [*self.work, *(kind for kind in other.work if kind not in self.work)]
        nothing = (0.0, 0.0, 0.0)
        pairs = {kind: (self.work.get(kind, nothing), other.work.get(kind, nothing)) for kind in kinds}
        work = {kind: [a - b for a, b in zip(*pair, strict=True)] for kind, pair in pairs.items()}
        memory, kept = self.memory - other.memory, self.kept - other.kept
        return Cost(memory, kept, work, self.state - other.state, self.gradients - other.gradients)

    def in_parts(self, count: int) -> Cost:
        """About what a step in ``count`` micro-batches takes, where this is what it takes in one piece: activations of
        a part at a time, sums of gradients beside the optimizer's state, and each kernel called on each part."""
        if count == 1:
            return self
        state = self.state + self.gradients
        memory, kept = (state + (size - self.state) / count for size in (self.memory, self.kept))
        work = {kind: (calls * count, flops, size) for kind, (calls, flops, size) in self.work.items()}
        return Cost(memory, kept, work, state, self.gradients)


def cost_of(program: Program) -> Cost:
    """What a step of a program takes, whether it is built or only planned."""
    memory, kernels = program.memory(), program.manifest["kernels"]
    calls = kernel_calls(program.manifest["entries"]["train_step"])
    state = memory["optimizer_state"] + memory["gradient_sums"]
    saved = sum(layer["saved_bytes"] for layer in program.manifest["layers"])
    work = work_of([kernels[kernel] for kernel, _ in calls])
    return Cost(memory["arena"] + state, saved + state, work, state, _gradient_bytes(program))


def _gradient_bytes(program: Program) -> int:
    """The bytes of the gradients of all that is trained."""
    total = 0
    for name, trained in program.trained.items():
        weight = program.parameters[name]
        shape = list(weight.shape)
        if trained != "full":
            shape[trained["axis"]] = len(trained["indices"])
        total += math.prod(shape) * np.dtype(weight.dtype).itemsize
    return total


def work_of(kernels: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The work of some calls, of which each has ``kind``, ``flops`` and ``bytes``."""
    work: dict[str, list[float]] = {}
    for kernel in kernels:
        entry = work.setdefault(kernel["kind"], [0.0, 0.0, 0.0])
        for at, amount in enumerate((1.0, kernel["flops"], kernel["bytes"])):
            entry[at] += amount
    return work
