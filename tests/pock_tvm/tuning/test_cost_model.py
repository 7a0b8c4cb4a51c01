"""Features of schedules, which the cost model learns from."""

from __future__ import annotations

import pytest
from tvm import tirx

from pock_tvm.compiler.targets import resolve_target
from pock_tvm.tuning.cost_model import features
from pock_tvm.tuning.space import Space
from schedules.kernels.update import Layout, sgd
from tests.schedules.test_decisions import KERNELS, TARGETS, kernel_of

TARGET = resolve_target("host")


def update_with_a_tail() -> tirx.PrimFunc:
    """An update whose momentum is a variable, which every part of a row defines."""
    plain = {"dampening": False, "nesterov": False, "weight_decay": 0.0}
    return sgd(Layout((10,), "float32"), momentum=0.9, vectors={"rates": 1}, **plain)


@pytest.mark.parametrize("name", ["an update with a tail", *KERNELS])
def test_every_point_has_features(name: str) -> None:
    space = Space(TARGETS["cpu"], kernel_of(name)[0] if name in KERNELS else update_with_a_tail())
    points = [space.default]
    for number, point in enumerate(space.points()):
        if number in (1, 2, 4, 8, 16, 32):
            points.append(point)
    found = features(TARGET, space, points)
    assert len(found) == len(points) and all(rows.shape[1] == 164 and len(rows) for rows in found)
