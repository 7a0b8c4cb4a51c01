"""``pock.tune``: searches the schedules of a program's kernels, and keeps what makes its step faster."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from ..compiler.database import Database
from ..compiler.faults import for_users
from ..compiler.rebuild import rebuild, target_of
from ..compiler.targets import kernel_target
from ..deploying.endpoint import Endpoint
from ..device.arguments import FLAG, PATH, number, one_of, require, whole
from ..device.files import make_folder
from ..device.program import Program
from ..quantities import AMOUNT, parse_bytes
from .dispatcher import Dispatcher
from .measurer import Measure, Measurer
from .parts import parts_of
from .result import TuningResult
from .search import Progress, Search
from .space import OWN_SPACE
from .static.measure import STATIC
from .tasks import tasks_of
from .verdicts import ByEstimates, OnSteps, Verdict

SECONDS = 1200.0
"""Seconds of a search for which neither trials nor seconds are given."""
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


@for_users
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
        the target's core, or for CUDA by counts of PTX (:mod:`pock_tvm.tuning.static`), for a target without a device.
        Nothing is measured, checked or compared within steps then: a kernel gets another schedule only for a clear
        estimated gain, and may be slower (:class:`pock_tvm.tuning.verdicts.ByEstimates`).
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
    verdict: Verdict
    if measure == STATIC:
        verdict = ByEstimates(program, space, devices, model)
    else:
        verdict = OnSteps(program, devices, model, None if memory is None else parse_bytes(memory))
    make_folder(database)
    parts = parts_of(
        target, strategy=strategy, cost_model=cost_model, space=space, measure=measure, keep_going=keep_going
    )
    records = Database(database, target, estimated=verdict.is_estimate)
    records.warn()
    program, shares = verdict.prepare(records, seconds, progress)
    tasks = tasks_of(program, kernel_target(target), shares, verdict.space_maker(parts))
    search = Search(tasks, records, parts.strategy, parts.cost_model, seed, keep_going=keep_going)
    with ExitStack() as stack:
        own = [stack.enter_context(Measurer(each)) for each in (devices or (None,))]
        patience = max((each.timeout for each in devices), default=0.0)
        dispatcher = stack.enter_context(Dispatcher(parts.measures(own), str(target), patience))
        left = None if seconds is None else start + seconds - time.monotonic()
        search.run(dispatcher, trials, left, progress)
        search.confirm(dispatcher)
    search.warn()
    return verdict.choose(search, records)
