"""Small tasks and made-up measurements."""

from __future__ import annotations

from typing import Any

import pock_tvm as pock
from pock_tvm.choosing.candidates import (
    Candidate,
)
from pock_tvm.choosing.contributions import Contributions
from pock_tvm.choosing.costs import Cost
from pock_tvm.choosing.runs import Run

HEAD = Candidate(0)


def by_run(found: Contributions) -> dict:
    return {(run.candidate, run.epochs, run.seed): run.score for run in (*found.runs, *found.trials)}


def contributions(task: pock.Task, runs: list[tuple[Any, ...]]) -> Contributions:
    """Of runs, each a candidate, epochs, a seed, a score, and perhaps a loss."""
    made = [Run(*run) for run in runs]
    return Contributions(task, {}, "", made, {run.candidate: Cost(1.0) for run in made})
