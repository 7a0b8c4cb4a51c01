"""The accuracy that frozen layers in eight bits cost the head."""

from __future__ import annotations

from dataclasses import replace

import pytest

import pock_tvm as pock
from pock_tvm.choosing.candidates import Candidate
from pock_tvm.choosing.contributions import Contributions
from pock_tvm.choosing.eight_bits import drop_of, measured_drop
from pock_tvm.choosing.runs import Run
from pock_tvm.choosing.worker import open_model
from tests.pock_tvm.choosing.measurements import HEAD, contributions

RUNS = [(HEAD, 1, 0, 10.0, 3.0), (HEAD, 2, 0, 50.0, 1.0), (HEAD, 2, 1, 60.0, 0.8), (Candidate(1), 2, 0, 58.0, 0.6)]


def test_the_head_is_trained_behind_eight_bits_as_it_was_behind_floats(analysed: Contributions, tmp_path) -> None:
    _, structure = open_model(analysed.task)
    own = replace(analysed, eight_bits=[])
    drop = measured_drop(own, structure, "int8")
    assert [(run.epochs, run.seed) for run in own.eight_bits] == [(2, 0), (2, 1)]
    for run in own.eight_bits:
        other = own.run_of(HEAD, run.epochs, run.seed)
        assert run.loss != other.loss
        assert run.loss == pytest.approx(other.loss, rel=0.2)
    assert drop is not None and 0 <= drop < 10
    own.save(tmp_path / "c.json")
    again = Contributions.load(tmp_path / "c.json")
    assert again.eight_bits == own.eight_bits
    again.task = replace(again.task, data="none")  # nothing is trained twice
    assert measured_drop(again, structure, "int8") == drop


def test_a_drop_is_in_points_by_the_loss(task: pock.Task) -> None:
    found = contributions(task, RUNS)
    assert drop_of(found) is None
    found.eight_bits = [Run(HEAD, 2, 0, 50.0, 1.05), Run(HEAD, 2, 1, 60.0, 0.85)]
    assert drop_of(found) == pytest.approx(0.05 * 8 / 0.4)
    found.eight_bits = [Run(HEAD, 2, 0, 49.0)]
    assert drop_of(found) == pytest.approx(1.0)
    found.eight_bits = [Run(HEAD, 2, 0, 51.0, 0.9)]
    assert drop_of(found) == 0.0
