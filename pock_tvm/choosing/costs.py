"""What training costs: memory as the planner plans it, work as the graph says, time by a model that was calibrated on
measured kernels."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import nnls

from ..device.program import Program

Work = Mapping[str, Sequence[float]]
"""By the kind of kernel: calls, FLOPs, bytes."""
Profiles = Sequence[Sequence[Mapping[str, Any]]]
"""The records of the kernels of some steps."""


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
    calls = program.manifest["entries"]["train_step"]["calls"]
    state = memory["optimizer_state"] + memory["gradient_sums"]
    saved = sum(layer["saved_bytes"] for layer in program.manifest["layers"])
    work = _work([kernels[kernel] for kernel, _ in calls])
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


def _work(kernels: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The work of some calls, of which each has ``kind``, ``flops`` and ``bytes``."""
    work: dict[str, list[float]] = {}
    for kernel in kernels:
        entry = work.setdefault(kernel["kind"], [0.0, 0.0, 0.0])
        for at, amount in enumerate((1.0, kernel["flops"], kernel["bytes"])):
            entry[at] += amount
    return work


@dataclass(frozen=True)
class TimeModel:
    """Seconds of a step from its work: so much a call, and so much a FLOP and a byte of each kind of kernel."""

    call: float
    flop: Mapping[str, float]
    byte: Mapping[str, float]
    error: float
    """The median relative error over the steps that it was checked with."""
    origin: str
    """What was measured, and what that error is of, in words."""

    def __str__(self) -> str:
        return f"time model is of {self.origin} within {100 * self.error:.0f} %"

    def seconds(self, cost: Cost) -> float:
        """About how long a step takes."""
        return sum(
            calls * self.call + flops * self._rate(self.flop, kind) + size * self._rate(self.byte, kind)
            for kind, (calls, flops, size) in cost.work.items()
        )

    @staticmethod
    def _rate(rates: Mapping[str, float], kind: str) -> float:
        """The rate of a kind; of one that was never measured that of the slowest."""
        return rates[kind] if kind in rates else max(rates.values(), default=0.0)

    @classmethod
    def fit(cls, profiles: Profiles, check: Profiles, origin: str) -> TimeModel:
        """The model that comes nearest, in relative terms, to the kernels of measured steps.

        ``profiles`` and ``check`` hold for each step the records of :func:`pock_tvm.device.profile.profile`.
        """
        records = [record for profile in profiles for record in profile]
        kinds = sorted({record["kind"] for record in records})
        products = sorted({record["kind"] for record in records if record["flops"]})
        rows = np.zeros((len(records), 1 + len(kinds) + len(products)))
        for row, record in zip(rows, records, strict=True):
            row[0] = 1e-6
            row[1 + kinds.index(record["kind"])] = record["bytes"] * 1e-9
            if record["flops"]:
                row[1 + len(kinds) + products.index(record["kind"])] = record["flops"] * 1e-9
        times = np.array([record["ms"] * 1e-3 for record in records])
        # A kernel counts by what it takes of the step, but a small one is no less true than a large one.
        weights = 1 / np.sqrt(np.maximum(times, 1e-6))
        found, _ = nnls(rows * weights[:, None], times * weights)
        byte = {kind: found[1 + at] * 1e-9 for at, kind in enumerate(kinds)}
        flop = {kind: found[1 + len(kinds) + at] * 1e-9 for at, kind in enumerate(products)}
        model = cls(found[0] * 1e-6, flop, byte, 0.0, origin)
        errors = []
        for profile in check:
            real = sum(record["ms"] for record in profile) * 1e-3
            errors.append(abs(model.seconds(Cost(0, 0, _work(profile))) / real - 1))
        return cls(model.call, flop, byte, statistics.median(errors), origin)
