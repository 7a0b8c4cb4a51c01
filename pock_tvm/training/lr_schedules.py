"""Learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda _done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "linear": lambda done: 1 - done,
}
"""Learning-rate schedules by name: the factor on the base rate, after a share ``done`` in [0, 1) of all steps."""
