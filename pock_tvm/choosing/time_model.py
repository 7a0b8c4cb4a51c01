"""A linear model of step time, calibrated on measured kernels."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import nnls

from ..compiler.targets import kernel_target, resolve_target
from ..compiler.training_options import FLOAT32
from ..device.profile import example, profile
from ..device.trainer import Trainer
from ..frontend.structure import Structure
from .candidates import Candidate, scheme_of
from .costs import Cost, work_of
from .task import Task
from .worker import compile_task, frozen_options

Profiles = Sequence[Sequence[Mapping[str, Any]]]
"""Kernel records of some steps (:func:`pock_tvm.device.profile.profile`)."""


@dataclass(frozen=True)
class TimeModel:
    """Step time as a sum over kernel calls: seconds a call, and seconds a FLOP and a byte by kind of kernel."""

    call: float
    flop: Mapping[str, float]
    byte: Mapping[str, float]
    error: float
    """Median relative error on the validation steps."""
    origin: str
    """Source of the measurements and of the error, as part of a sentence."""

    def __str__(self) -> str:
        return f"time model is of {self.origin} within {100 * self.error:.0f} %"

    def seconds(self, cost: Cost) -> float:
        """Predict the time of a step."""
        return sum(
            calls * self.call + flops * self._rate(self.flop, kind) + size * self._rate(self.byte, kind)
            for kind, (calls, flops, size) in cost.work.items()
        )

    @staticmethod
    def _rate(rates: Mapping[str, float], kind: str) -> float:
        """Look up the rate of a kind; a kind that was never measured counts as the slowest."""
        return rates[kind] if kind in rates else max(rates.values(), default=0.0)

    @classmethod
    def fit(cls, profiles: Profiles, check: Profiles, origin: str) -> TimeModel:
        """Fit a model to measured kernels by non-negative least squares, and compute its error on other steps.

        ``profiles`` and ``check`` hold one list of records a step, from :func:`pock_tvm.device.profile.profile`.
        """
        records = [record for profile in profiles for record in profile]
        kinds = sorted({record["kind"] for record in records})
        products = sorted({record["kind"] for record in records if record["flops"]})
        rows = np.zeros((len(records), 1 + len(kinds) + len(products)))
        for row, record in zip(rows, records, strict=True):  # unknowns in us, ns a byte, ns a FLOP: of similar size
            row[0] = 1e-6
            row[1 + kinds.index(record["kind"])] = record["bytes"] * 1e-9
            if record["flops"]:
                row[1 + len(kinds) + products.index(record["kind"])] = record["flops"] * 1e-9
        times = np.array([record["ms"] * 1e-3 for record in records])
        # Residuals over sqrt(t) lie between absolute errors (large kernels decide) and relative ones (small ones do).
        weights = 1 / np.sqrt(np.maximum(times, 1e-6))
        rates, _ = nnls(rows * weights[:, None], times * weights)
        byte = {kind: rates[1 + at] * 1e-9 for at, kind in enumerate(kinds)}
        flop = {kind: rates[1 + len(kinds) + at] * 1e-9 for at, kind in enumerate(products)}
        model = cls(rates[0] * 1e-6, flop, byte, 0.0, origin)
        errors = []
        for step in check:
            measured = sum(record["ms"] for record in step) * 1e-3
            errors.append(abs(model.seconds(Cost(0, 0, work_of(step))) / measured - 1))
        return cls(model.call, flop, byte, statistics.median(errors), origin)


def calibrate(task: Task, structure: Structure, group: Iterable[Candidate], frozen: str = FLOAT32) -> TimeModel:
    """Fit the time model of this machine to steps of a small and of a large scheme, and validate it on a third, between
    them. With ``frozen`` also to a step of the small scheme whose frozen layers have that type."""
    counts = [each.biases for each in group if not each.weight]
    weights = {each.weight: 1.0 for each in group if each.weight}

    def step(biases: int, ratios: Mapping[str, float], **options: Any) -> Sequence[Mapping[str, Any]]:
        # No self-check: only the time matters.
        trainer = Trainer(compile_task(task, scheme_of(structure, biases, ratios), check=False, **options))
        return profile(trainer, *example(trainer.program))

    half = dict(list(weights.items())[len(weights) // 2 :])
    steps = [step(min(counts), {}), step(max(counts), weights)]
    if frozen != FLOAT32:
        steps.append(step(min(counts), {}, **frozen_options(task, frozen)))
    return TimeModel.fit(
        steps,
        [step(max(counts) // 2, half)],
        "two steps measured on this machine, and foretells a third",
    )


def scaled(model: TimeModel, target: Any) -> TimeModel:
    """Scale the time model of this machine to another by peak throughput: on CPUs, vector width and cores."""
    own, other = (kernel_target(resolve_target(each)).traits for each in (None, target))
    if target is None or other == own:
        return model
    slower = own.peak / other.peak
    return replace(
        model,
        flop={kind: rate * slower for kind, rate in model.flop.items()},
        byte={kind: rate * slower for kind, rate in model.byte.items()},
        origin="this machine, scaled by vector width and cores (give --profile for better), and foretold its steps",
    )
