"""``pock.tune``: searches the schedules of a program's kernels, and keeps what makes its step faster."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from schedules.decisions import DEFAULTS, Decisions

from ..compiler.database import Database, Tuned, kernel_key
from ..compiler.driver import own_faults
from ..compiler.rebuild import rebuild, target_of
from ..compiler.targets import kernel_target, runs_here
from ..deploying.endpoint import Endpoint, first_of
from ..device.arguments import FLAG, PATH, number, one_of, require, whole
from ..device.files import make_folder
from ..device.measuring.steps import Steps
from ..device.program import Program
from ..errors import OptionError, PockError
from ..quantities import AMOUNT, parse_bytes
from .dispatcher import Dispatcher
from .measurer import Measure, Measurer
from .parts import parts_of
from .remote import RemoteDevice, RemoteSteps
from .search import LEAST_GAIN, Progress, Search
from .space import OWN_SPACE, Space
from .static.measure import STATIC, estimated_work
from .step import StepsOf, compare_kernels, compare_steps, kernel_seconds
from .step_search import StepSearch
from .tasks import tasks_of

SECONDS = 1200.0
"""Seconds of a search for which neither trials nor seconds are given."""
STEPS_SHARE = 0.25
"""Largest share of a search's seconds for choices above kernels."""
ESTIMATED_GAIN = 1.1
"""Least estimated gain for which a kernel leaves its default: estimates rank schedules, and roughly."""
OPTIONS = {
    "database": PATH,
    "memory": AMOUNT.or_none(),
    "trials": whole("a number of trials, at least 1", 1).or_none(),
    "seconds": number("a number of seconds above 0", above=0).or_none(),
    "strategy": one_of("the name of a strategy", str),
    "cost_model": one_of("the name of a cost model", str).or_none(),
    "space": one_of("the name of a space", str),
    "seed": whole("a whole number from 0", 0),
    "keep_going": FLAG,
}


@dataclass(frozen=True)
class KernelOutcome:
    """Result for one kernel that has choices."""

    name: str
    share: float
    """Share of a default step's time."""
    trials: int
    gain: float
    """Seconds of the default over those of the chosen schedule, within steps: 1 if the default was kept."""
    decisions: Decisions
    """Empty for the default."""


@dataclass(frozen=True)
class TuningResult:
    """Result of tuning."""

    program: Program
    """The tuned program; the given one if no schedule made its step faster."""
    before: float
    """Median seconds of a step with default schedules, measured in turns with the tuned one."""
    after: float
    """Median seconds of a step of :attr:`program`."""
    trials: int
    """Trials of the program's kernels in the database."""
    failures: int
    """Trials of this run that failed."""
    kernels: list[KernelOutcome]
    """Those with the largest share of a step first."""
    choices: Decisions
    """Choices above kernels that are not the defaults."""
    choices_gain: float
    """How many times as fast they made the step, before its kernels were tuned."""
    estimated: bool = False
    """Whether nothing was measured: gains, shares and :attr:`before` are estimates then, and the latter is 1."""

    @property
    def gain(self) -> float:
        """How many times as fast the step has become."""
        return self.before / self.after


@own_faults()
def tune(
    program: Program | str | os.PathLike[str],
    database: str | os.PathLike[str],
    *,
    trials: int | None = None,
    seconds: float | None = None,
    strategy: str = "evolutionary",
    cost_model: str | None = None,
    space: str = OWN_SPACE,
    measure: str | Measure = "device",
    seed: int = 0,
    keep_going: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
    devices: Sequence[Endpoint] = (),
    model: Any = None,
    memory: str | int | None = None,
) -> TuningResult:
    """Tune the schedules of a program's kernels, and with its ``model`` the choices above kernels.

    It measures on this machine, or on ``devices`` over RPC.

    Every trial is written to the database at once: a search that is killed goes on where it was. At the end the fastest
    schedules are compared with the defaults within whole steps, in turns. What is faster there is chosen, in the
    database and in the tuned program, so that a tuned program is never slower than the default.
    :func:`pock_tvm.compile` takes what was chosen with ``database=``.

    Choices above kernels (:mod:`pock_tvm.compiler.step_choices`) come first: for each option a step is compiled and
    measured whole, in turns with the fastest so far (:class:`StepSearch`). Then the kernels of the fastest are tuned.

    Parameters
    ----------
    program : Program, or its path
        Compiled for this machine or the devices, and not slim.
    database : path
        Folder of the database (:mod:`pock_tvm.compiler.database`); made if there is none.
    trials : int, optional
        Number of trials after which the search ends, those in the database included.
    seconds : float, optional
        Time after which the search ends: 20 minutes, if ``trials`` is not given either. The comparison comes on top.
    strategy : str
        ``"evolutionary"`` (the default) or ``"random"``. This and the following three may also name an entry point of
        another package (:mod:`pock_tvm.tuning.plugins`).
    cost_model : str, optional
        ``"xgboost"`` or ``"none"``: what a strategy asks which schedules to measure. By default XGBoost's, and none for
        the strategy ``"random"``.
    space : str
        ``"own"`` (the default): the choices of the target's schedules; ``"metaschedule"``: TVM's generic space.
    measure : str, or Measure
        ``"device"`` (the default): a process of this machine, or of ``devices``. ``"static"``: estimates by a model of
        the target's core (:mod:`pock_tvm.tuning.static`), for a target without a device. Nothing is measured, checked
        or compared within steps then: a kernel gets another schedule only for an estimated gain of
        :data:`ESTIMATED_GAIN`, and may be slower. It is recorded as an estimate, which whatever is measured outranks.
    seed : int
        Seed of the strategy's random numbers.
    keep_going : bool
        Whether to go on with our own part, and warn, if one of another package fails.
    progress : callable, optional
        Is called with a :class:`Progress` after each trial.
    devices : sequence of Endpoint, optional
        Devices of one kind, which measure in parallel; this machine without any. Their servers need our measuring
        function (:mod:`pock_tvm.device.measuring.service`). The first that is there compares whole steps.
    model : optional
        The model that the program was compiled from, as :func:`pock_tvm.compile` takes it. They take a quarter of
        ``seconds`` at most, and go on in the next run.
    memory : str or int, optional
        Most memory that a step with other choices may need (weights, state and arena): ``"64MB"``, or bytes. By default
        what it needs with the default choices.

    Raises
    ------
    DatabaseError
        The database is of another version of TVM.
    DeviceError
        No device is there, or all have gone and none has come back within its timeout. Trials are kept.
    PluginError
        A part of another package fails.
    ProgramError
        The program is slim.
    PockError
        The program is for another machine, or an option is at fault.

    Warns
    -----
    PockWarning
        Records of the database are damaged, a kernel cannot be measured, a schedule fails in an unforeseen way, a part
        of another package fails with ``keep_going``, or a device is missing.
    """
    given = {"trials": trials, "seconds": seconds, "strategy": strategy, "cost_model": cost_model, "space": space}
    given |= {"seed": seed, "keep_going": keep_going}
    for name, value in {"database": database, "memory": memory, **given}.items():
        require(name, value, OPTIONS[name])
    start = time.monotonic()
    if trials is None and seconds is None:
        seconds = SECONDS
    program = program if isinstance(program, Program) else Program.load(program)
    if any(record.get("schedule") in ("tuned", "estimated") for record in program.manifest["kernels"].values()):
        program = rebuild(program)
    target = target_of(program)
    if measure != STATIC and not devices and not runs_here(target):
        raise PockError(
            f"the program is for {program.manifest['target']['triple']}: kernels are tuned on the machine that they "
            "are for. Name its RPC server (devices=, or --rpc), or estimate their times (measure='static')"
        )
    if measure == STATIC and (devices or model is not None):
        raise OptionError("measure='static' estimates kernels: leave devices and model out, whose steps are measured")
    if measure == STATIC and space != OWN_SPACE:
        raise OptionError(
            f"measure='static' compares no results, and schedules of space={space!r} may be wrong: leave space out"
        )
    make_folder(database)
    parts = parts_of(
        target, strategy=strategy, cost_model=cost_model, space=space, measure=measure, keep_going=keep_going
    )
    records = Database(database, target, estimated=measure == STATIC)
    records.warn()
    default, steps = program, None
    if measure == STATIC:
        step = estimated_work(program, target)
    else:
        with _steps_on(devices, program) as steps_of:
            if model is not None:
                steps = StepSearch(model, program, records, steps_of, None if memory is None else parse_bytes(memory))
                steps.run(None if seconds is None else STEPS_SHARE * seconds, progress)
                default, program = rebuild(steps.default), rebuild(steps.best)
            step = kernel_seconds(program, steps_of)
    space_of = Space if measure == STATIC else parts.space_of  # TVM's generic schedules may be wrong, too
    tasks = tasks_of(program, kernel_target(target), step, space_of)
    search = Search(tasks, records, parts.strategy, parts.cost_model, seed, keep_going=keep_going)
    with ExitStack() as stack:
        own = [stack.enter_context(Measurer(each)) for each in (devices or (None,))]
        patience = max((each.timeout for each in devices), default=0.0)
        dispatcher = stack.enter_context(Dispatcher(parts.measures(own), str(target), patience))
        left = None if seconds is None else start + seconds - time.monotonic()
        search.run(dispatcher, trials, left, progress)
        search.confirm(dispatcher)
    search.warn()
    if measure == STATIC:
        return _estimated_verdict(program, search, records)
    with _steps_on(devices, program) as steps_of:
        return _verdict(default, program, search, records, steps, steps_of)


@contextmanager
def _steps_on(devices: Sequence[Endpoint], program: Program) -> Iterator[StepsOf]:
    """Yield what makes the steps of programs of a target: on the first device that is there, or on this machine."""
    if not devices:
        yield Steps
        return
    with closing(RemoteDevice(first_of(devices), program.manifest["target"])) as device:
        yield partial(RemoteSteps, device)


def _verdict(
    default: Program,
    program: Program,
    search: Search,
    database: Database,
    steps: StepSearch | None,
    steps_of: StepsOf,
) -> TuningResult:
    """Choose the schedules that are faster within steps, if the step with all of them is faster than the default's.

    ``program`` has the choices above kernels that ``steps`` found, and default schedules.
    """
    chosen = {task.key: Tuned(task.best.decisions, task.speedup) for task in search.tasks if task.best is not None}
    if chosen:
        seconds = compare_kernels(program, _rebuilt(program, chosen), steps_of)
        for task in search.tasks:
            before, after = (sum(each) for each in zip(*(seconds[name] for name in task.names), strict=True))
            if task.key in chosen and before > LEAST_GAIN * after:
                chosen[task.key] = Tuned(chosen[task.key].decisions, before / after)
            else:
                chosen.pop(task.key, None)
    tuned_program = _rebuilt(program, chosen) if chosen else program
    before, after = compare_steps(default, tuned_program, steps_of)
    choices, gain = (DEFAULTS, 1.0) if steps is None else (steps.decisions, steps.gain)
    if after >= before or not (chosen or choices):  # else noise would be a gain
        tuned_program, after, chosen, choices, gain = default, before, {}, DEFAULTS, 1.0
    if steps is not None:
        steps.choose(gain)
        tuned_program.manifest["step"]["gain"] = gain if choices else None
    kernels = _outcomes(search, database, chosen)
    return TuningResult(tuned_program, before, after, search.trials, search.failures, kernels, choices, gain)


def _estimated_verdict(program: Program, search: Search, database: Database) -> TuningResult:
    """Choose the schedules whose estimated gain is clear."""
    tasks = [task for task in search.tasks if task.best is not None and task.speedup >= ESTIMATED_GAIN]
    chosen = {task.key: Tuned(task.best.decisions, task.speedup, estimated=True) for task in tasks if task.best}
    after = 1 - sum(task.share * (1 - 1 / task.speedup) for task in tasks)
    kernels = _outcomes(search, database, chosen)
    tuned_program = _rebuilt(program, chosen) if chosen else program
    return TuningResult(
        tuned_program, 1.0, after, search.trials, search.failures, kernels, DEFAULTS, 1.0, estimated=True
    )


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
    return rebuild(program, lambda func: chosen.get(kernel_key(func)))
