"""Verdicts: what of a search's results is chosen, by whole steps on a device or by estimates where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, Protocol

from tvm import tirx

from schedules.decisions import DEFAULTS
from schedules.target import Target as KernelTarget

from ..compiler.database import Database, Tuned, kernel_key
from ..compiler.rebuild import rebuild, target_of
from ..compiler.targets import kernel_target, runs_here, triple_of
from ..deploying.endpoint import Endpoint, first_of
from ..device.measuring.steps import Steps
from ..device.program import Program
from ..errors import OptionError, PockError
from .parts import Parts
from .remote import RemoteDevice, RemoteSteps
from .result import KernelOutcome, TuningResult
from .search import LEAST_GAIN, Progress, Search
from .space import OWN_SPACE, Space
from .static.measure import estimated_work
from .static.packets import is_hexagon
from .step import StepsOf, compare_kernels, compare_steps, kernel_seconds
from .step_search import StepSearch, check_choices_can_be_tried

STEPS_SHARE = 0.25
"""Largest share of a search's seconds for choices above kernels."""
ESTIMATED_GAIN = 1.1
"""Least estimated gain for which a kernel leaves its default: estimates rank schedules, and roughly. Packets of Hexagon
are counted: for these it is :data:`LEAST_GAIN`."""

SpaceMaker = Callable[[KernelTarget, tirx.PrimFunc], Space]


class Verdict(Protocol):
    """Weighs the kernels of one program before a search, and chooses among what it found."""

    is_estimate: bool
    """Whether nothing is measured: trials and choices are kept as estimates then."""

    def prepare(
        self, database: Database, seconds: float | None, progress: Callable[[Progress], None]
    ) -> tuple[Program, dict[str, float]]:
        """Return the program whose kernels to tune, and the time that each takes in a step, in some unit.

        ``seconds`` are those of the whole search.
        """

    def space_maker(self, parts: Parts) -> SpaceMaker:
        """Return what makes the spaces of kernels."""

    def choose(self, search: Search, database: Database) -> TuningResult:
        """Choose schedules for the kernels of a search that is over, and record them."""


class OnSteps:
    """Verdict by whole steps on ``devices``, or on this machine: a schedule is chosen if the step is faster with it.

    With a ``model`` the choices above kernels come first. Their steps need at most ``memory`` bytes.

    Raises
    ------
    PockError
        No device is given, and the program is for another machine; or choices above kernels cannot be tried.
    """

    is_estimate = False

    def __init__(self, program: Program, devices: Sequence[Endpoint], model: Any, memory: int | None) -> None:
        target = target_of(program)
        if not devices and not runs_here(target):
            raise PockError(
                f"the program is for {triple_of(target)}: kernels are tuned on the machine that they are for. Name its "
                "RPC server (devices=, or --rpc), or estimate their times (measure='static')"
            )
        if model is not None:
            check_choices_can_be_tried(program)
        self._default = self._program = program
        """Programs with all defaults, and with the choices above kernels that are faster."""
        self._devices, self._model, self._memory = devices, model, memory
        self._above: StepSearch | None = None

    def prepare(
        self, database: Database, seconds: float | None, progress: Callable[[Progress], None]
    ) -> tuple[Program, dict[str, float]]:
        """Search the choices above kernels, and measure the kernels of the fastest step."""
        with self._steps() as steps_of:
            if self._model is not None:
                self._above = StepSearch(self._model, self._program, database, steps_of, self._memory)
                self._above.run(None if seconds is None else STEPS_SHARE * seconds, progress)
                self._default, self._program = rebuild(self._above.default), rebuild(self._above.best)
            return self._program, kernel_seconds(self._program, steps_of)

    def space_maker(self, parts: Parts) -> SpaceMaker:
        """Return what makes the spaces that were asked for."""
        return parts.space_of

    def choose(self, search: Search, database: Database) -> TuningResult:
        """Choose the schedules that are faster within steps, if the step with all of them is faster than the
        default's."""
        chosen = {task.key: Tuned(task.best.decisions, task.speedup) for task in search.tasks if task.best is not None}
        with self._steps() as steps_of:
            if chosen:
                chosen = self._faster(search, chosen, steps_of)
            tuned = _rebuilt(self._program, chosen)
            before, after = compare_steps(self._default, tuned, steps_of)
        choices, gain = (DEFAULTS, 1.0) if self._above is None else (self._above.decisions, self._above.gain)
        if after >= before or not (chosen or choices):  # else noise would be a gain
            tuned, after, chosen, choices, gain = self._default, before, {}, DEFAULTS, 1.0
        if self._above is not None:
            self._above.choose(gain)
            tuned.manifest["step"]["gain"] = gain if choices else None
        kernels = _outcomes(search, database, chosen)
        return TuningResult(tuned, before, after, search.trials, search.failures, kernels, choices, gain)

    def _faster(self, search: Search, chosen: Mapping[str, Tuned], steps_of: StepsOf) -> dict[str, Tuned]:
        """Return those of the fastest schedules that are clearly faster within steps, with their gains there."""
        seconds, found = compare_kernels(self._program, _rebuilt(self._program, chosen), steps_of), {}
        for task in search.tasks:
            before, after = (sum(each) for each in zip(*(seconds[name] for name in task.names), strict=True))
            if task.key in chosen and before > LEAST_GAIN * after:
                found[task.key] = Tuned(chosen[task.key].decisions, before / after)
        return found

    @contextmanager
    def _steps(self) -> Iterator[StepsOf]:
        """Yield what makes the steps of programs: on the first device that is there, or on this machine."""
        if not self._devices:
            yield Steps
            return
        manifest = self._program.manifest
        with closing(RemoteDevice(first_of(self._devices), manifest["target"])) as device:
            yield partial(RemoteSteps, device)


class ByEstimates:
    """Verdict where nothing runs: a schedule is chosen for a clear estimated gain, and may be slower.

    Raises
    ------
    OptionError
        Something is given that only measuring can use, or whose schedules have to be checked.
    """

    is_estimate = True

    def __init__(self, program: Program, space: str, devices: Sequence[Endpoint], model: Any) -> None:
        if devices or model is not None:
            raise OptionError(
                "measure='static' estimates kernels: leave devices and model out, whose steps are measured"
            )
        if space != OWN_SPACE:
            raise OptionError(
                f"measure='static' compares no results, and schedules of space={space!r} may be wrong: leave space out"
            )
        self._program = program

    def prepare(
        self, database: Database, seconds: float | None, progress: Callable[[Progress], None]
    ) -> tuple[Program, dict[str, float]]:
        """Weigh kernels by their FLOPs and bytes."""
        return self._program, estimated_work(self._program, target_of(self._program))

    def space_maker(self, parts: Parts) -> SpaceMaker:
        """Return what makes spaces of our own schedules alone: TVM's generic ones may be wrong, too."""
        return Space

    def choose(self, search: Search, database: Database) -> TuningResult:
        """Choose the schedules whose estimated gain is clear."""
        least = LEAST_GAIN if is_hexagon(database.target) else ESTIMATED_GAIN
        tasks = [task for task in search.tasks if task.best is not None and task.speedup >= least]
        chosen = {task.key: Tuned(task.best.decisions, task.speedup, estimated=True) for task in tasks if task.best}
        after = 1 - sum(task.share * (1 - 1 / task.speedup) for task in tasks)
        kernels, tuned = _outcomes(search, database, chosen), _rebuilt(self._program, chosen)
        return TuningResult(tuned, 1.0, after, search.trials, search.failures, kernels, DEFAULTS, 1.0, estimated=True)


def _outcomes(search: Search, database: Database, chosen: Mapping[str, Tuned]) -> list[KernelOutcome]:
    """Record what was chosen for each kernel, and return it."""
    target, kernels = kernel_target(database.target), []
    for task in search.tasks:
        tuned = chosen.get(task.key, Tuned(DEFAULTS, 1.0))
        database.choose(task.key, tuned, target.schedule(task.func, tuned.decisions))
        trials = len(database.trials.get(task.key, {}))
        kernels.append(KernelOutcome(task.names[0], task.share, trials, tuned.gain, tuned.decisions))
    return kernels


def _rebuilt(program: Program, chosen: Mapping[str, Tuned]) -> Program:
    """Return a program with the chosen schedules: itself without any."""
    return rebuild(program, lambda func: chosen.get(kernel_key(func))) if chosen else program
