"""Targets that kernels are tested on."""

from __future__ import annotations

import pytest

from schedules.cpu import CpuTarget
from schedules.target import Target
from tests.schedules.kernels import CPUS, TARGETS

SLOW = {"webgpu"}
"""Targets whose driver takes long to compile a kernel."""
PARAMS = [pytest.param(target, id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name, target in TARGETS.items()]


@pytest.fixture(params=PARAMS)
def target(request: pytest.FixtureRequest) -> Target:
    """Each target in turn."""
    return request.param


@pytest.fixture(params=CPUS.values(), ids=CPUS)
def cpu(request: pytest.FixtureRequest) -> CpuTarget:
    """Each CPU in turn: for what only a CPU's schedules do."""
    return request.param
