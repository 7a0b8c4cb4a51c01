"""Costs of training: planned memory, and the work of a step's kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..compiler.footprint.needs import limited_bytes
from ..device.program import Program, kernel_calls

Work = Mapping[str, Sequence[float]]
"""Calls, FLOPs and bytes by kind of kernel."""


@dataclass(frozen=True)
class Cost:
    """Cost of one training step."""

    memory: float
    """Bytes that ``memory_budget`` limits: arena, optimizer state, gradient sums; in a bundle all memory."""
    kept: float = 0.0
    """Bytes that live through the step: optimizer state, gradient sums, activations saved for the backward graph."""
    work: Work = field(default_factory=dict)
    state: float = 0.0
    """Bytes of ``memory`` that micro-batches do not divide: optimizer state and gradient sums."""
    gradients: float = 0.0
    """Bytes of all gradients; micro-batches sum them."""
    scratch: float = 0.0
    """Bytes of the arena that a kernel's own buffers take: of some images, however many there are."""

    @property
    def flops(self) -> float:
        """FLOPs of all kernels; a multiply-add counts two."""
        return sum(flops for _, flops, _ in self.work.values())

    @property
    def bytes(self) -> float:
        """Bytes read and written, each operand of each kernel once."""
        return sum(size for _, _, size in self.work.values())

    def minus(self, other: Cost) -> Cost:
        """Subtract a cost."""
        kinds = [*self.work, *(kind for kind in other.work if kind not in self.work)]
        nothing = (0.0, 0.0, 0.0)
        pairs = {kind: (self.work.get(kind, nothing), other.work.get(kind, nothing)) for kind in kinds}
        work = {kind: [a - b for a, b in zip(*pair, strict=True)] for kind, pair in pairs.items()}
        memory, kept = self.memory - other.memory, self.kept - other.kept
        fixed = (self.state - other.state, self.gradients - other.gradients, self.scratch - other.scratch)
        return Cost(memory, kept, work, *fixed)

    def in_micro_batches(self, count: int) -> Cost:
        """Estimate the cost of the same step in ``count`` micro-batches.

        Activations shrink to those of one micro-batch, scratch does not. Gradients are summed beside the optimizer
        state, and each kernel is called ``count`` times.
        """
        if count == 1:
            return self
        state = self.state + self.gradients
        kept = state + (self.kept - self.state) / count
        memory = state + (self.memory - self.state - self.scratch) / count + self.scratch
        work = {kind: (calls * count, flops, size) for kind, (calls, flops, size) in self.work.items()}
        return Cost(memory, kept, work, state, self.gradients, self.scratch)


def cost_of(program: Program) -> Cost:
    """Compute the cost of a program's training step; it may be planned only, not built."""
    kernels, (memory, state) = program.manifest["kernels"], limited_bytes(program)
    calls = kernel_calls(program.manifest["entries"]["train_step"])
    saved = sum(layer["saved_bytes"] for layer in program.manifest["layers"])
    work = work_of([kernels[kernel] for kernel, _ in calls])
    return Cost(memory, saved + state, work, state, _gradient_bytes(program), program.memory()["scratch"])


def _gradient_bytes(program: Program) -> int:
    """Sum the bytes of the gradients of all trained parameters."""
    total = 0
    for name, trained in program.trained.items():
        weight = program.parameters[name]
        shape = list(weight.shape)
        if trained != "full":
            shape[trained["axis"]] = len(trained["indices"])
        total += math.prod(shape) * np.dtype(weight.dtype).itemsize
    return total


def work_of(kernels: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Sum the work of kernel calls, each given by ``kind``, ``flops`` and ``bytes``."""
    work: dict[str, list[float]] = {}
    for kernel in kernels:
        entry = work.setdefault(kernel["kind"], [0.0, 0.0, 0.0])
        for at, amount in enumerate((1.0, kernel["flops"], kernel["bytes"])):
            entry[at] += amount
    return work
