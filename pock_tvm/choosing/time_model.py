"""The time of a training step, by a model that is calibrated on measured kernels."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import nnls

from schedules.cpu import traits_of

from ..compiler.targets import resolve_target
from ..device.profile import example, profile
from ..device.trainer import Trainer
from ..frontend.structure import Structure
from .candidates import Candidate, scheme_of
from .costs import Cost, work_of
from .task import Task
from .worker import compile_task

Profiles = Sequence[Sequence[Mapping[str, Any]]]
"""The records of the kernels of some steps."""


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
        for step in check:
            real = sum(record["ms"] for record in step) * 1e-3
            errors.append(abs(model.seconds(Cost(0, 0, work_of(step))) / real - 1))
        return cls(model.call, flop, byte, statistics.median(errors), origin)


def calibrate(task: Task, structure: Structure, wanted: Iterable[Candidate]) -> TimeModel:
    """The time model of this machine, from the kernels of a small and of a large scheme in real steps; how far it is
    off is said of a third one, between them."""
    counts = [each.biases for each in wanted if not each.weight]
    weights = {each.weight: 1.0 for each in wanted if each.weight}

    def step(biases: int, shares: Mapping[str, float]) -> Sequence[Mapping[str, Any]]:
        # Only its time is asked for.
        trainer = Trainer(compile_task(task, scheme_of(structure, biases, shares), check=False))
        return profile(trainer, *example(trainer.program))

    half = dict(list(weights.items())[len(weights) // 2 :])
    return TimeModel.fit(
        [step(min(counts), {}), step(max(counts), weights)],
        [step(max(counts) // 2, half)],
        "two steps measured on this machine, and foretells a third",
    )


def scaled(model: TimeModel, target: Any) -> TimeModel:
    """The time model of another machine, as far as vector width and cores decide over it."""
    own, other = (traits_of(resolve_target(each)) for each in (None, target))
    if target is None or other == own:
        return model
    slower = own.lanes * own.cores / (other.lanes * other.cores)
    return replace(
        model,
        flop={kind: rate * slower for kind, rate in model.flop.items()},
        byte={kind: rate * slower for kind, rate in model.byte.items()},
        origin="this machine, scaled by vector width and cores (give --profile for better), and foretold its steps",
    )
