"""The time model."""

from __future__ import annotations

import numpy as np
import pytest

import pock_tvm as pock
from pock_tvm.choosing.candidates import candidates
from pock_tvm.choosing.costs import Cost
from pock_tvm.choosing.time_model import TimeModel, calibrate
from pock_tvm.choosing.worker import open_model


def test_a_time_model_finds_the_rates_that_times_were_made_of() -> None:
    rng = np.random.default_rng(0)
    rates = {"a": (2e-11, 1e-10), "b": (1e-10, 3e-11), "": (0.0, 5e-11)}
    profiles = []
    for _ in range(2):
        profile = []
        for kind, (flop, byte) in rates.items():
            for _ in range(20):
                flops, size = (0.0 if kind == "" else float(rng.uniform(1e5, 1e8))), float(rng.uniform(1e3, 1e7))
                time = 2e-6 + flops * flop + size * byte
                profile.append({"kind": kind, "flops": flops, "bytes": size, "ms": 1e3 * time})
        profiles.append(profile)
    model = TimeModel.fit(profiles, profiles, "made up")
    assert model.error < 1e-6
    assert model.call == pytest.approx(2e-6, rel=1e-4)
    assert all(model.byte[kind] == pytest.approx(byte, rel=1e-4) for kind, (_, byte) in rates.items())
    assert all(model.flop[kind] == pytest.approx(flop, rel=1e-4) for kind, (flop, _) in rates.items() if kind)
    assert model.seconds(Cost(0, 0, {"a": (1, 1e6, 0)})) == pytest.approx(2e-6 + 2e-5, rel=1e-4)


def test_layers_in_eight_bits_have_rates_of_their_own(task: pock.Task) -> None:
    _, structure = open_model(task)
    model = calibrate(task, structure, candidates(structure, [1.0]), "int8")
    assert {"pock.conv2d", "int8 pock.conv2d"} <= model.flop.keys()
