"""Random networks train on a GPU as they do on the CPU. (``bench/random_networks.py`` tries any number.)"""

from __future__ import annotations

import pytest

from tests.random_networks import compare, draw
from tests.schedules.kernels import first_device

COUNT = 100


@pytest.mark.parametrize("seed", range(COUNT))
def test_a_random_network_trains_on_opencl_as_on_the_cpu(seed: int) -> None:
    first_device("opencl")
    drawn = draw(seed)
    assert compare(drawn, "opencl") <= 1e-4, drawn.text
