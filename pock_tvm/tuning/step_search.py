"""Search of choices above kernels: a step is compiled with one of them decided otherwise, and measured whole."""

from __future__ import annotations

import functools
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from schedules.decisions import DEFAULTS, Decisions
from schedules.target import Target as KernelTarget

from ..compiler.database import ANY, Database, Trial, Tuned, TunedStep, text_of
from ..compiler.driver import compile as compile_program
from ..compiler.rebuild import target_of
from ..compiler.step_choices import decided, kernels_key
from ..compiler.training_options import FLOAT32
from ..device import optimizers
from ..device.losses import Loss
from ..device.parameters import PREPARED
from ..device.program import Program
from ..errors import CheckError, OptionError, PockWarning
from ..frontend import load_model
from ..schemes.scheme import Scheme
from .search import Progress
from .step import StepsOf, compare_steps

LEAST_GAIN = 1.01
"""Least gain of a step for which a choice leaves its default, in each of :data:`TIMES` comparisons."""
TIMES = 2


@dataclass(frozen=True)
class _Decided:
    """Records with some decisions for the step."""

    database: Database
    decisions: Decisions

    def tuned(self, func: tirx.PrimFunc, target: KernelTarget) -> Tuned | None:
        """Return what the database has for a kernel."""
        return self.database.tuned(func, target)

    def tuned_step(self, _key: str) -> TunedStep | None:
        """Return the decisions."""
        return TunedStep(self.decisions, 1.0, ANY) if self.decisions else None


def check_choices_can_be_tried(program: Program) -> None:
    """Check that a program's step can be compiled with other choices, and checked.

    Raises
    ------
    OptionError
        It computes in 16 bits, of which a step is checked in float32; or it has frozen layers in eight bits.
    """
    if program.manifest["options"]["precision"] != FLOAT32:
        raise OptionError(
            "model= is given, and a step in 16 bits is not checked itself, so that choices above kernels cannot be "
            "trusted there: leave it out, and its kernels are tuned"
        )
    if program.manifest["options"].get("frozen", FLOAT32) != FLOAT32:
        raise OptionError(
            "model= is given, and the program has frozen layers in eight bits: to compile its step with other "
            "choices takes the data that it was calibrated with. Leave it out, and its kernels are tuned"
        )


class StepSearch:
    """Search from a program's choices, one at a time, each from the fastest step so far.

    A choice is taken if the step is faster, equals the framework that the model comes from (as ``compile`` checks),
    takes the same checkpoints, and needs no more than ``memory`` bytes (weights, state and arena): by default what the
    program needs with the default choices. Trials are kept in the database, and not repeated.

    Raises
    ------
    OptionError
        The model is not the one that the program was compiled from.
    """

    def __init__(
        self, model: Any, program: Program, database: Database, steps_of: StepsOf, memory: int | None = None
    ) -> None:
        self._compile = functools.partial(compile_program, *_model_of(model, program), **_options_of(program))
        self._database, self._steps_of = database, steps_of
        self.default = self._compiled(DEFAULTS)
        """The program with the default choices."""
        self.key = self.default.manifest["step"]["key"]
        if self.key != program.manifest.get("step", {}).get("key"):
            raise OptionError(
                "the program was not compiled from this model, or not by this version: give the model= that it was "
                "compiled from, or compile it again"
            )
        self._memory = _bytes_of(self.default) if memory is None else memory
        self.best = self.default
        """The fastest program so far."""
        self.gain = 1.0
        """How many times as fast as the default choices it is."""
        known = database.tuned_step(self.key)
        if known is not None:
            again = self._compiled(known.decisions)
            if kernels_key(again.manifest["entries"]) == known.kernels:
                self.best, self.gain = again, known.gain

    @property
    def decisions(self) -> Decisions:
        """Decisions of the fastest program that are not defaults."""
        return decided(self.best.manifest["step"]["choices"])

    def run(self, seconds: float | None, progress: Callable[[Progress], None]) -> None:
        """Try choices until all are tried, or none begins before so many seconds are over."""
        end, failures = math.inf if seconds is None else time.monotonic() + seconds, 0
        for decisions, name in self._variants():
            if time.monotonic() >= end:
                return
            trial, variant = self._tried(decisions)
            self._database.add_trial(self.key, trial)
            if variant is not None:
                self.best, self.gain = variant, self.gain * trial.speedup
                self.choose(self.gain)
            failures += trial.failure is not None
            count, left = len(self._database.trials[self.key]), None if seconds is None else end - time.monotonic()
            progress(Progress(name, trial.speedup, count, failures, self.gain, left and max(0.0, left)))

    def choose(self, gain: float) -> None:
        """Record the fastest step's choices, with a gain; the defaults without one."""
        program = self.best if gain > 1 else self.default
        kernels = kernels_key(program.manifest["entries"])
        decisions = decided(program.manifest["step"]["choices"])
        self._database.choose_step(self.key, TunedStep(decisions, gain, kernels))

    def _variants(self) -> Iterator[tuple[Decisions, str]]:
        """Yield decisions that have not been tried, and the one that differs from the fastest step, as text."""
        for name, choice in self.default.manifest["step"]["choices"].items():
            for option in choice["options"]:
                taken = self.best.manifest["step"]["choices"].get(name, {}).get("decided")
                decisions = {**self.decisions, name: option}
                if option != taken and text_of(decisions) not in self._database.trials.get(self.key, {}):
                    yield decisions, f"{name} = {option}"

    def _tried(self, decisions: Decisions) -> tuple[Trial, Program | None]:
        """Measure a step with some decisions beside the fastest; return its program, too, if it is faster."""

        def failed(why: str) -> tuple[Trial, None]:
            return Trial(decisions, None, None, why), None

        planned = self._compiled(decisions, build=False)
        if kernels_key(planned.manifest["entries"]) == kernels_key(self.best.manifest["entries"]):
            return failed("makes the same step")
        if _bytes_of(planned) > self._memory:
            return failed(f"needs {_bytes_of(planned)} bytes of memory, and may need {self._memory}")
        if _state_of(planned) != _state_of(self.default):
            return failed("would not take the same checkpoints")
        variant = self._compiled(decisions)
        for _ in range(TIMES):
            before, after = compare_steps(self.best, variant, self._steps_of)
            if before <= LEAST_GAIN * after:
                return Trial(decisions, after, before), None
        try:
            checked = self._compiled(decisions, check=None)
        except CheckError as error:
            return failed(f"wrong: {error}")
        if checked.manifest["check"] is None:
            return failed("nothing is there to check it against")
        return Trial(decisions, after, before), checked

    def _compiled(self, decisions: Decisions, *, build: bool = True, check: bool | None = False) -> Program:
        with warnings.catch_warnings(action="ignore", category=PockWarning):  # they were given when it was compiled
            return self._compile(database=_Decided(self._database, decisions), build=build, check=check)


def _model_of(model: Any, program: Program) -> list[Any]:
    shapes = {spec["name"]: tuple(spec["shape"]) for spec in program.manifest["inputs"]}
    return [load_model(model, shapes=shapes)]


def _options_of(program: Program) -> dict[str, Any]:
    """Return the options of :func:`pock_tvm.compile` that a program was compiled with."""
    manifest = program.manifest
    return {
        "scheme": Scheme(manifest["scheme"]),
        "loss": Loss(**manifest["loss"]),
        "optimizer": optimizers.from_json(manifest["optimizer"]),
        "target": target_of(program),
        **manifest["options"],
    }


def _bytes_of(program: Program) -> int:
    """Return the bytes of a program's weights, state and arena."""
    memory = program.memory()
    return memory["parameters"] + memory["optimizer_state"] + memory["gradient_sums"] + memory["arena"]


def _state_of(program: Program) -> dict[str, Any]:
    """Return what checkpoints of a program hold, whatever the layout in memory."""
    return {
        name: (each.shape if each.is_weight else None, each.dtype, each.trained, each.of, each.slot)
        for name, each in program.parameters.items()
        if each.origin != PREPARED
    }
