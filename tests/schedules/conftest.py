"""Targets that kernels are tested on."""

from __future__ import annotations

import pytest

from schedules.cpu import CpuTarget
from schedules.target import Target
from tests.schedules.kernels import CPUS, TARGETS

SLOW = {"webgpu"}
"""Targets whose driver takes long to compile a kernel."""
EACH = 3
"""Of the products on them every third is run: their schedules are OpenCL's, which runs all."""
PARAMS = [pytest.param(target, id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name, target in TARGETS.items()]


@pytest.fixture(params=PARAMS)
def target(request: pytest.FixtureRequest) -> Target:
    """Each target in turn."""
    return request.param


@pytest.fixture(params=CPUS.values(), ids=CPUS)
def cpu(request: pytest.FixtureRequest) -> CpuTarget:
    """Each CPU in turn: for what only a CPU's schedules do."""
    return request.param


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out of the products on slow targets all but every third."""
    products = [item for item in items if item.name.startswith("test_product[") and item.get_closest_marker("slow")]
    left_out = {item for number, item in enumerate(products) if number % EACH}
    items[:] = [item for item in items if item not in left_out]
