"""Times the steps of a program on this machine, on made-up data."""

from __future__ import annotations

import time
from collections import defaultdict

from ..errors import NonFiniteError
from ..profile import example, profile
from ..program import Program
from ..trainer import Trainer

REPEAT = 3
"""Steps of a profile."""


class Steps:
    """Steps of a program. Errors: as those of :class:`pock_tvm.Trainer`."""

    def __init__(self, program: Program) -> None:
        self._trainer, self._data = Trainer(program), example(program)

    def kernel_seconds(self) -> dict[str, float]:
        """Return the seconds that each kernel takes in a step, all its calls together."""
        found: dict[str, float] = defaultdict(float)
        for row in profile(self._trainer, *self._data, repeat=REPEAT):
            found[row["kernel"]] += row["ms"] / 1e3
        return dict(found)

    def seconds(self) -> float | None:
        """Take a step, and return its seconds; None if it stops at a number that is not finite, which says nothing."""
        start = time.perf_counter()
        try:
            self._trainer.step(*self._data, lr=0.0)
        except NonFiniteError:
            return None
        return time.perf_counter() - start
