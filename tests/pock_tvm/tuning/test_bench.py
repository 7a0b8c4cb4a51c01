"""Times of schedules on a disturbed machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from pock_tvm.device.measuring import bench
from pock_tvm.device.measuring.bench import Bench, Built, Kernel

DEFAULT, OTHER = Built(b"default", ()), Built(b"other", ())
QUIET, DISTURBED = 1e-3, 0.1


class Told(Bench[bytes]):
    """Bench that is told how long runs of the default take, the last time for good; others take as long as on a quiet
    machine."""

    def __init__(self, times: Sequence[float], other: float = QUIET) -> None:
        self._times: Iterator[float] = iter(times)
        self._last, self._other = times[-1], other
        super().__init__(Kernel({}, (), 1, DEFAULT))

    def prepare(self) -> None: ...

    def load(self, built: Built) -> bytes:
        return built.code

    def results(self, loaded: bytes, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        return []

    def seconds(self, loaded: bytes, passes: int) -> float:
        return next(self._times, self._last) if loaded == b"default" else self._other


@pytest.fixture(autouse=True)
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(bench.time, "sleep", found.append)
    return found


def test_a_schedule_is_not_faster_because_the_default_was_disturbed(rests: list[float]) -> None:
    measured = Told([QUIET, QUIET, DISTURBED, QUIET, DISTURBED]).measure(OTHER)
    assert measured.seconds == QUIET and measured.reference == pytest.approx(bench.CALM * QUIET)
    assert len(rests) == bench.LEAST_ROUNDS + bench.ATTEMPTS - 1
    hopeless = Told([QUIET, QUIET, DISTURBED], other=4 * QUIET).measure(OTHER)
    assert (hopeless.seconds, hopeless.reference) == (4 * QUIET, QUIET)


def test_a_disturbance_that_ends_leaves_no_trace() -> None:
    begun = [QUIET] * 4 + [DISTURBED] * (bench.LEAST_ROUNDS + bench.ROUNDS)
    assert Told([*begun, QUIET]).measure(OTHER) == (QUIET, QUIET, None)


def test_a_machine_may_become_slower_for_good() -> None:
    slower = Told([QUIET] * 4 + [2 * QUIET])
    for _ in range(bench.RECENT):
        measured = slower.measure(OTHER)
    assert measured.reference == 2 * QUIET
