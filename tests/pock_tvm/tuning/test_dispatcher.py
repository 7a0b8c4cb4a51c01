"""The dispatcher keeps devices busy, and loses none but the running trial with a device that goes."""

from __future__ import annotations

import threading
import time
import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from pock_tvm.compiler.database import Trial
from pock_tvm.errors import DeviceError, PockError, PockWarning
from pock_tvm.tuning import dispatcher as module
from pock_tvm.tuning.dispatcher import Batch, Dispatcher
from pock_tvm.tuning.measurer import LostError, MeasuringError

DOOM, REFUSED, USELESS = -1, -2, -3
"""Points that make a device go, a kernel that cannot be measured, and a device of no use."""


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.02)


@dataclass
class Device:
    """A device that is away for a number of looks after it has gone."""

    away: float = 0
    measured: int = 0
    meeting: threading.Barrier | None = None
    """Where it waits for another device, at each schedule."""

    def measure(self, definition, target, points):
        for point in points:
            if self.meeting is not None:
                self.meeting.wait(10)
            if point["x"] == DOOM:
                raise LostError("it is off", point)
            if point["x"] == REFUSED:
                raise MeasuringError("the default schedule fails: no")
            if point["x"] == USELESS:
                raise PockError("it speaks another version")
            self.measured += 1
            yield Trial(point, 1.0, 1.0)

    def reach(self, target):
        self.away -= 1
        if self.away >= 0:
            raise LostError("it is off")


def batch(*points: int) -> Batch:
    return Batch(SimpleNamespace(key="k", record=SimpleNamespace(definition="")), [{"x": each} for each in points])


def outcomes(dispatcher: Dispatcher) -> list:
    found = []
    while dispatcher.pending:
        found.append(dispatcher.next()[1])
    return found


def tried(found: list) -> list[int]:
    return sorted(each.decisions["x"] for each in found if isinstance(each, Trial))


def test_devices_measure_at_the_same_time() -> None:
    meeting = threading.Barrier(2)
    devices = [Device(meeting=meeting), Device(meeting=meeting)]
    with Dispatcher(devices, "", 1) as dispatcher:
        assert dispatcher.idle == 2
        dispatcher.submit(batch(1, 2))
        dispatcher.submit(batch(3, 4))
        assert dispatcher.idle == 0
        assert tried(outcomes(dispatcher)) == [1, 2, 3, 4]
        assert dispatcher.idle == 2
    assert [each.measured for each in devices] == [2, 2]


def test_a_batch_waits_for_a_device_that_measures() -> None:
    meeting = threading.Barrier(2)
    with Dispatcher([Device(meeting=meeting)], "", 1) as dispatcher:
        assert (dispatcher.idle, dispatcher.wanted) == (1, 2)
        dispatcher.submit(batch(1))
        assert (dispatcher.idle, dispatcher.wanted) == (0, 1)
        dispatcher.submit(batch(2))
        assert (dispatcher.idle, dispatcher.wanted) == (0, 0)
        for _ in range(2):
            meeting.wait(10)
        assert tried(outcomes(dispatcher)) == [1, 2] and dispatcher.wanted == 2


def test_what_a_device_leaves_is_measured_by_another() -> None:
    """The schedule that was running when a second device goes with it counts as failed."""
    devices = [Device(away=1e9), Device(away=3)]
    with Dispatcher(devices, "", 5) as dispatcher, pytest.warns(PockWarning, match="it is off: ") as told:
        dispatcher.submit(batch(1, DOOM, 2, 3))
        found = outcomes(dispatcher)
    assert tried(found) == [DOOM, 1, 2, 3] and found[-1] is None
    (failed,) = [each for each in found if isinstance(each, Trial) and each.failure]
    assert failed.decisions == {"x": DOOM} and failed.failure == "its device goes: it is off" and failed.seconds is None
    assert ["the others go on" in str(each.message) for each in told] == [True, False]


def test_a_device_that_comes_back_goes_on() -> None:
    device = Device(away=4)
    with Dispatcher([device], "", 5) as dispatcher, warnings.catch_warnings(action="ignore"):
        dispatcher.submit(batch(DOOM, 1))
        assert tried(outcomes(dispatcher)) == [DOOM, 1]
        assert dispatcher.idle == 1


def test_nobody_is_waited_for_longer_than_the_patience() -> None:
    start = time.monotonic()
    with (
        Dispatcher([Device(away=1e9)], "", 0.3) as dispatcher,
        pytest.warns(PockWarning, match="waiting for it for 0.3 s"),
        pytest.raises(DeviceError, match=r"none came within 0.3 s.*the same command goes on"),
    ):
        dispatcher.submit(batch(1, DOOM))
        outcomes(dispatcher)
    assert time.monotonic() - start < 10


def test_a_kernel_that_cannot_be_measured_ends_its_batch_alone() -> None:
    with Dispatcher([Device()], "", 1) as dispatcher:
        dispatcher.submit(batch(REFUSED, 1))
        assert [type(each) for each in outcomes(dispatcher)] == [MeasuringError]
        dispatcher.submit(batch(1))
        assert tried(outcomes(dispatcher)) == [1]


def test_a_device_of_no_use_ends_the_search() -> None:
    with Dispatcher([Device()], "", 1) as dispatcher, pytest.raises(PockError, match="another version"):
        dispatcher.submit(batch(USELESS))
        outcomes(dispatcher)
