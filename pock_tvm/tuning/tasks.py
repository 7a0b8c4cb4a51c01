"""Tuning tasks: the distinct kernels of a program, weighted by their share of its step."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import tvm
from tvm import tirx

from schedules.decisions import Decisions
from schedules.target import Target

from ..compiler.database import Database, KernelRecord, Trial, kernel_key
from ..compiler.rebuild import definitions_of
from ..device.program import Program, kernel_calls
from .space import Space, own_space

LEAST_STAKE = 0.05
"""Least share of a kernel's time that counts as at stake: rates of other kernels are no limit."""
SMALL = 0.01
"""Share of a step's time below which a kernel's rates are not taken for the machine's."""
SEEDS = 4
"""Schedules of other kernels that a search starts with."""


@dataclass
class Task:
    """One kernel to tune, under the names that the program calls it by."""

    key: str
    names: list[str]
    func: tirx.PrimFunc
    record: KernelRecord
    space: Space
    share: float
    """Share of the step's time that the kernel takes, with its default schedule."""
    stake: float
    """Share of the step's time that it would save at the rates of the program's fastest kernels."""
    best: Trial | None = None
    """Fastest trial so far."""
    fruitless: int = 0
    """Batches since the fastest was found."""

    @property
    def speedup(self) -> float:
        """How many times as fast as the default the best schedule is: at least 1."""
        return max(1.0, self.best.speedup if self.best else 1.0)

    @property
    def priority(self) -> float:
        """Time at stake, less the longer nothing better was found."""
        return max(self.stake - self.share * (1 - 1 / self.speedup), LEAST_STAKE * self.share) / (1 + self.fruitless)

    def take(self, trials: Sequence[Trial]) -> None:
        """Take the trials of a batch."""
        fastest = max(trials, key=lambda trial: trial.speedup, default=None)
        if fastest is not None and fastest.speedup > (self.best.speedup if self.best else 0.0):
            self.best, self.fruitless = fastest, 0
        else:
            self.fruitless += 1


def tasks_of(
    program: Program,
    target: Target,
    seconds: Mapping[str, float],
    space_of: Callable[[Target, tirx.PrimFunc], Space] = own_space,
) -> list[Task]:
    """Return the kernels of a program that have choices, those with the largest share of a step first.

    ``seconds`` are those of kernels in a step, by name, all calls together, or proportional to them. Kernels that a
    step does not call are left out. ``space_of`` makes their spaces.

    Raises
    ------
    ProgramError
        The program does not hold its kernels' loops.
    """
    whole, least = sum(seconds.values()), _least_seconds(program, seconds)
    tasks: dict[str, Task] = {}
    for name, definition in definitions_of(program).items():
        if not seconds.get(name):
            continue
        share, stake = seconds[name] / whole, (seconds[name] - least[name]) / whole
        func = tvm.ir.load_json(definition)
        key = kernel_key(func)
        if key in tasks:
            tasks[key].names.append(name)
            tasks[key].share += share
            tasks[key].stake += stake
            continue
        space = space_of(target, func)
        if not space.is_open:
            continue
        shapes = tuple(tuple(map(int, param.ty.shape)) for param in func.params)
        rule = program.manifest["kernels"][name].get("kind", "")
        record = KernelRecord(name, rule, shapes, definition)
        tasks[key] = Task(key, [name], func, record, space, share, stake)
    return sorted(tasks.values(), key=lambda task: -task.share)


def _least_seconds(program: Program, seconds: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds of kernels at the best rates of arithmetic and of memory that any kernel of a step reaches.

    Those of less than :data:`SMALL` of a step say nothing: what they move is in a cache.
    """
    calls = Counter(name for name, _ in kernel_calls(program.manifest["entries"]["train_step"]))
    costs = program.manifest["kernels"]
    large = [name for name in seconds if seconds[name] >= SMALL * sum(seconds.values())]
    least = dict.fromkeys(seconds, 0.0)
    for what in ("flops", "bytes"):
        work = {name: calls[name] * costs[name][what] for name in seconds}
        rate = max((work[name] / seconds[name] for name in large), default=0.0)
        if rate:
            least = {name: max(least[name], min(seconds[name], work[name] / rate)) for name in seconds}
    return least


def seeds_of(task: Task, database: Database) -> list[Decisions]:
    """Return the best decisions of kernels like this one, made to fit it: of itself under older schedules, and of those
    with the same rule and ranks, the nearest shapes first."""
    found = sorted(database.older.get(task.key, []), key=lambda trial: -trial.speedup)[:SEEDS]
    distances = {
        key: distance
        for key, record in database.kernels.items()
        if key != task.key and (distance := _distance(record, task.record)) is not None
    }
    for key in sorted(distances, key=distances.__getitem__)[:SEEDS]:
        trials = [*database.trials.get(key, {}).values(), *database.older.get(key, [])]
        found += sorted(trials, key=lambda trial: -trial.speedup)[:1]
    points = (task.space.repaired(trial.decisions) for trial in found if trial.speedup > 1)
    return [point for point in points if point is not None]


def _distance(one: KernelRecord, other: KernelRecord) -> float | None:
    """Return how far shapes are from each other, by the ratios of their extents; None if kernels are not alike."""
    if not one.rule or one.rule != other.rule or list(map(len, one.shapes)) != list(map(len, other.shapes)):
        return None
    pairs = (pair for shapes in zip(one.shapes, other.shapes, strict=True) for pair in zip(*shapes, strict=True))
    return sum(abs(math.log2(max(a, 1) / max(b, 1))) for a, b in pairs)
