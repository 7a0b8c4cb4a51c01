"""Gains as contributions compare them, and the file."""

from __future__ import annotations

import pytest

import pock_tvm as pock
from pock_tvm.choosing.candidates import (
    Candidate,
)
from pock_tvm.choosing.contributions import Contributions
from tests.pock_tvm.choosing.measurements import HEAD, contributions


def test_gains_are_compared_seed_by_seed_at_the_same_length(task) -> None:
    one = Candidate(3)
    runs = [
        (HEAD, 1, 0, 10.0),
        (HEAD, 2, 0, 50.0),
        (HEAD, 2, 1, 60.0),
        (one, 1, 0, 90.0),
        (one, 2, 0, 53.0),
        (one, 2, 1, 61.0),
    ]
    gain = contributions(task, runs).gain(one, HEAD)
    assert (gain.mean, gain.spread, gain.seeds, gain.epochs) == (2.0, pytest.approx(2**0.5), 2, 2)
    assert contributions(task, runs).gain(one, HEAD, within=1).mean == 80.0


def test_weights_are_compared_to_the_best_number_of_biases(task) -> None:
    runs = [(HEAD, 2, 0, 50.0), (Candidate(1), 2, 0, 60.0), (Candidate(2), 2, 0, 55.0), (Candidate(3), 1, 0, 90.0)]
    assert contributions(task, runs).base() == Candidate(1)
    assert contributions(task, [*runs, (Candidate(2, "w"), 1, 0, 1.0)]).base() == Candidate(2)


def test_a_damaged_file_is_refused(tmp_path) -> None:
    (tmp_path / "c.json").write_text('{"format": "pock-contributions/1"')
    with pytest.raises(pock.PockError, match="holds no contributions"):
        Contributions.load(tmp_path / "c.json")
    with pytest.raises(pock.PockError, match="'pock analyze' makes one"):
        Contributions.load(tmp_path / "none.json")
