"""Expected gains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pock_tvm as pock
from pock_tvm.choosing.candidates import (
    Candidate,
    WeightSet,
)
from pock_tvm.choosing.contributions import Contributions
from pock_tvm.choosing.expected_gains import expected_gains, gain_cap, growing_sets, rank_agreement
from pock_tvm.choosing.runs import Run
from tests.pock_tvm.choosing.measurements import HEAD, contributions


def test_what_failed_once_is_never_chosen(task) -> None:
    one, other = Candidate(1), Candidate(2)
    runs = [(HEAD, 1, 0, 50.0), (one, 1, 0, 60.0), (other, 1, 0, 99.0), (other, 1, 1, None)]
    found = contributions(task, runs)
    assert found.gain(other, HEAD) is None
    assert set(expected_gains(found)) == {HEAD, one}
    assert found.base() == one


def test_short_runs_count_as_much_as_their_gains_came_to_later(task) -> None:
    base = Candidate(1)
    kept, dropped = Candidate(1, "a"), Candidate(1, "b")
    runs = [(HEAD, e, 0, 0.0) for e in (1, 2)] + [(base, e, 0, 0.0) for e in (1, 2)]
    runs += [(kept, 1, 0, 8.0), (kept, 2, 0, 2.0), (dropped, 1, 0, 4.0)]
    gains = expected_gains(contributions(task, runs))
    assert gains[kept] == pytest.approx(2.0)
    assert gains[dropped] == pytest.approx(1.0)  # 4 of 8, which came to 2


def test_noise_is_drawn_towards_the_mean_of_its_like(task) -> None:
    rng = np.random.default_rng(0)
    runs = [(HEAD, 1, seed, 50.0) for seed in range(3)] + [(Candidate(1), 1, seed, 50.0) for seed in range(3)]
    weights = [Candidate(1, f"w{index}") for index in range(30)]
    runs += [(weight, 1, seed, 50 + float(rng.normal())) for weight in weights for seed in range(3)]
    found = contributions(task, runs)
    raw = np.array([found.gain(weight, Candidate(1)).mean for weight in weights])
    drawn = np.array([expected_gains(found)[weight] for weight in weights])
    assert drawn.std() < 0.5 * raw.std()
    assert drawn.mean() == pytest.approx(raw.mean(), abs=0.01)
    assert (drawn > 0.5).sum() == 0 < (raw > 0.5).sum()


def test_losses_tell_gains_where_accuracy_is_noisy(task) -> None:
    rng = np.random.default_rng(0)
    weights = [Candidate(1, f"w{index}") for index in range(30)]
    real = rng.normal(size=30)
    runs: list[tuple[Any, ...]] = [(HEAD, 1, 0, 50.0, 1.0), (Candidate(1), 1, 0, 50.0, 1.0)]
    runs += [
        (weight, 1, 0, 50 + gain + float(rng.normal()), 1 - 0.02 * gain + 0.004 * float(rng.normal()))
        for weight, gain in zip(weights, real, strict=True)
    ]
    gains = expected_gains(contributions(task, runs))
    assert np.abs([gains[weight] for weight in weights] - real).mean() < 0.4  # points; of accuracy it is 0.8
    of_accuracy = expected_gains(contributions(task, [run[:4] for run in runs]))
    assert np.abs([of_accuracy[weight] for weight in weights] - real).mean() > 0.6


def test_losses_that_tell_nothing_are_left_out(task) -> None:
    one, other = Candidate(1), Candidate(2)
    runs = [(HEAD, 1, 0, 50.0, 1.0), (one, 1, 0, 60.0, 1.1), (other, 1, 0, 55.0, 1.0)]
    assert expected_gains(contributions(task, runs)) == {HEAD: 0.0, one: 10.0, other: 5.0}


def tried(task: pock.Task, came_to: list[float | None]) -> Contributions:
    """Six weights of 10 points each over the one bias, which brings 5, and the scores of ever more of them together."""
    weights = [Candidate(1, name) for name in "abcdef"]
    runs = [(HEAD, 2, 0, 45.0), (Candidate(1), 2, 0, 50.0), *((weight, 2, 0, 60.0) for weight in weights)]
    found = contributions(task, runs)
    found.trials += [Run(each, 2, 0, score) for each, score in zip(growing_sets(found), came_to, strict=True)]
    return found


def test_larger_and_larger_sets_of_the_best_weights_are_tried(task) -> None:
    runs = [(HEAD, 2, 0, 50.0), (Candidate(1, "a", 0.5), 2, 0, 58.0), (Candidate(1, "a"), 2, 0, 56.0)]
    runs += [(Candidate(1), 2, 0, 50.0), (Candidate(1, "b"), 2, 0, 52.0), (Candidate(1, "c"), 2, 0, 49.0)]
    sets = growing_sets(contributions(task, runs))
    assert sets == [WeightSet(1, (("a", 0.5),)), WeightSet(1, (("a", 0.5), ("b", 1.0)))]
    assert growing_sets(contributions(task, runs[:1])) == []


@pytest.mark.parametrize(
    ("came_to", "is_enough"),
    [
        ((60.0, 65.0, 70.0, 69.0, 68.0, 60.0), 35.0),
        ((60.0, 65.0, 70.0, 71.0, 72.0, 73.0), np.inf),
        ((49.0, 48.0, 47.0, 46.0, 45.0, 44.0), 5.0),
        ((60.0, 65.0, 70.0, None, None, None), 35.0),
    ],
)
def test_a_search_needs_no_more_than_what_helped_together(task, came_to, is_enough) -> None:
    assert gain_cap(tried(task, list(came_to))) == pytest.approx(is_enough)


def test_ranks_are_those_of_the_runs_that_all_took_part_in(task) -> None:
    weights = [Candidate(1, name) for name in "abcd"]
    runs = [(HEAD, 1, 0, 0.0), (Candidate(1), 1, 0, 0.0), (Candidate(1), 2, 0, 0.0), (weights[0], 2, 0, -50.0)]
    runs += [(weight, 1, 0, 10.0 - number) for number, weight in enumerate(weights)]
    found = contributions(task, runs)
    found.scores |= {Candidate(7, weight.weight): 4.0 - number for number, weight in enumerate(weights)}
    assert rank_agreement(found) == {"weights": pytest.approx(1.0)}
    found.scores |= {Candidate(7, weight.weight): 1.0 * number for number, weight in enumerate(weights)}
    assert rank_agreement(found) == {"weights": pytest.approx(-1.0)}
