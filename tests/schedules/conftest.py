"""Targets that kernels are tested on."""

from __future__ import annotations

import pytest

from schedules.cpu import CpuTarget
from schedules.target import Target
from tests.schedules.kernels import CPUS, TARGETS


@pytest.fixture(params=TARGETS.values(), ids=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    """Each target in turn."""
    return request.param


@pytest.fixture(params=CPUS.values(), ids=CPUS)
def cpu(request: pytest.FixtureRequest) -> CpuTarget:
    """Each CPU in turn: for what only a CPU's schedules do."""
    return request.param
