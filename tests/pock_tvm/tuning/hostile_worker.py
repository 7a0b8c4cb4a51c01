"""A worker whose schedules misbehave as their decisions say: what ``test_measurer`` lets the tuner survive."""

from __future__ import annotations

import os
import signal
import time

from pock_tvm.tuning import worker
from pock_tvm.tuning.builder import Builder
from tests.schedules.kernels import defined
from tests.schedules.test_decisions import noise, rectified

CRASH, HANG, WRONG, UNBUILT, CRASH_BUILDING, STRAY = range(1, 7)
FAULT = "fault"


class HostileBuilder(Builder):
    """Reads a decision ``fault``, which no schedule offers."""

    def build(self, decisions):
        decisions = dict(decisions)
        fault = decisions.pop(FAULT, None)
        if fault == UNBUILT:
            raise ValueError("this cannot be scheduled\nas a second line says")
        if fault == CRASH_BUILDING:
            os.abort()
        if fault in (WRONG, STRAY):
            rows = 6 if fault == WRONG else 7  # one more than its results have
            other = defined(rectified, *noise("other", (2, rows, 5), (5, 16)))
            other = other.with_attr("global_symbol", self.func.attrs["global_symbol"])
            return Builder(other, self.target, is_here=True).build({})
        return super().build(decisions)


class HostilePlace(worker.Workplace):
    """Runs what crashes or hangs."""

    def measure(self, built, point):
        fault = point.get(FAULT)
        if fault == CRASH:
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault == HANG:
            time.sleep(3600)
        return super().measure(built, point)


def main(descriptor: int) -> None:
    worker.Builder, worker.Workplace = HostileBuilder, HostilePlace
    worker.main(descriptor)
