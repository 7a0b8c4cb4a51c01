"""Runs the steps of phases on a module, verifies each, and dumps it if a folder is given."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tvm
from tvm import IRModule
from tvm.ir.transform import Pass

from relay_passes.analysis.kernel_costs import seconds
from relay_passes.analysis.verify import Check, verify

from ..device.files import writing
from ..errors import of_passes
from .parameters import Parameters
from .step_choices import StepChoices


@dataclass
class Phases:
    """Module on its way through the phases. Every change to it is a step of a phase."""

    mod: IRModule
    dump: Path | None = None
    """Folder for ``<phase>-<step>.py``. A letter after the number keeps further steps of a phase in order."""
    parameters: Parameters = field(default_factory=dict)
    """Records of the parameters, with what the phases so far have filled in and added."""
    after: dict[str, IRModule] = field(default_factory=dict)
    """Module after each step."""
    numbers: dict[str, int] = field(default_factory=dict)
    """Phase number of each step."""
    places: dict[str, str] = field(default_factory=dict)
    """Part of the network that each kernel computes, for messages."""
    kernels: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Costs of each kernel, from phase 8 on: see :func:`relay_passes.analysis.kernel_costs.kernel_costs`."""
    choices: StepChoices = field(default_factory=StepChoices)
    """Choices above kernels, of all forks."""
    written: set[Path] = field(default_factory=set)
    """Files of the dump, of all forks."""

    def run(self, number: int, step: str, passes: Iterable[Pass], *checks: Check) -> IRModule:
        """Apply the passes of one step of a phase."""
        with of_passes():
            mod = tvm.transform.Sequential(list(passes))(self.mod)
        return self.enter(number, step, mod, *checks)

    def enter(self, number: int, step: str, mod: IRModule, *checks: Check) -> IRModule:
        """Record the module after a step. ``checks`` are invariants that hold from then on.

        They are verified, with Relax's well-formedness, if the environment variable ``POCK_VERIFY`` is 1.
        """
        self.mod = self.after[step] = mod
        self.numbers[step] = number
        self._write(step)
        if os.environ.get("POCK_VERIFY") == "1":
            with of_passes():
                verify(mod, f"phase {number}, {step}", checks)
        return mod

    @property
    def seconds(self) -> dict[str, float]:
        """Estimated seconds of each kernel."""
        return {name: seconds(cost) for name, cost in self.kernels.items()}

    def fork(self) -> Phases:
        """Copy the state, to run later phases in several variants."""
        return replace(self, after=dict(self.after), numbers=dict(self.numbers))

    def settle(self) -> None:
        """Keep only the steps of this fork in the dump."""
        for path in self.written:
            path.unlink(missing_ok=True)
        self.written.clear()
        for step in self.after:
            self._write(step)

    def _write(self, step: str) -> None:
        if self.dump is None:
            return
        number = self.numbers[step]
        at = [name for name, phase in self.numbers.items() if phase == number].index(step)
        letter = chr(ord("a") + at) if at else ""
        path = self.dump / f"{number:02d}{letter}-{step}.py"
        with writing(path):
            self.dump.mkdir(parents=True, exist_ok=True)
            path.write_text(self.after[step].script())
        self.written.add(path)
