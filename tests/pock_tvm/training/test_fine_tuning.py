"""Which samples a training sees, in which order, at which learning rate."""

from __future__ import annotations

import numpy as np
import pytest

import pock_tvm as pock
from pock_tvm.training.data import ArrayFile, digests
from pock_tvm.training.recipe import TrainingSteps, steps_of


@pytest.fixture
def data(tmp_path) -> ArrayFile:
    np.savez(tmp_path / "data.npz", x=np.arange(10.0), y=np.arange(10))
    return ArrayFile(tmp_path / "data.npz", ["x"])


def test_an_epoch_sees_each_sample_at_most_once(data) -> None:
    steps = list(TrainingSteps(pock.Recipe(2, 0.1), data, 3, seed=0))
    assert len(steps) == steps_of(pock.Recipe(2), data, 3) == 6
    for epoch in (steps[:3], steps[3:]):
        seen = np.concatenate([y for (_, y), _ in epoch])
        assert len(set(seen.tolist())) == 9
    again = TrainingSteps(pock.Recipe(2, 0.1), data, 3, seed=0)
    assert all((one[0][1] == other[0][1]).all() for one, other in zip(steps, again, strict=True))
    other = next(TrainingSteps(pock.Recipe(2, 0.1), data, 3, seed=1))
    assert (other[0][1] != steps[0][0][1]).any()


def test_the_learning_rate_falls_over_all_epochs(data) -> None:
    rates = [rate for _, rate in TrainingSteps(pock.Recipe(2, 0.1, "linear"), data, 3, seed=0)]
    assert rates == pytest.approx([0.1 * (1 - done / 6) for done in range(6)])


@pytest.mark.parametrize(("epochs", "steps"), [(0, 0), (0.01, 1), (0.5, 2), (1.5, 4)])
def test_a_part_of_an_epoch_is_some_of_its_batches(data, epochs, steps) -> None:
    recipe = pock.Recipe(epochs)
    assert len(list(TrainingSteps(recipe, data, 3, seed=0))) == steps_of(recipe, data, 3) == steps


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": -1}, "epochs is a number from 0"),
        ({"epochs": float("nan")}, "epochs is a number from 0"),
        ({"lr": float("inf")}, "a positive finite number"),
        ({"lr": 0}, "a positive finite number"),
        ({"lr": -1}, "a positive finite number"),
        ({"lr": 1e39}, "a positive finite number"),
        ({"lr": 1e-50}, "a positive finite number"),
        ({"lr_schedule": "steps"}, "there is no learning-rate schedule 'steps'; there are constant, cosine, linear"),
    ],
)
def test_recipes_that_make_no_sense(fields, message) -> None:
    with pytest.raises(pock.PockError, match=message):
        pock.Recipe(**fields)


def test_less_than_a_batch(data) -> None:
    with pytest.raises(pock.PockError, match="10 samples, fewer than one batch of 16"):
        steps_of(pock.Recipe(), data, 16)


def test_samples_are_told_apart_by_what_they_hold(data, tmp_path) -> None:
    np.savez(tmp_path / "other.npz", x=np.array([3.0, 3.0, 42.0]), y=np.arange(3))
    one, other = digests(data), digests(ArrayFile(tmp_path / "other.npz", ["x"]))
    assert len(set(one)) == 10
    assert [digest in one for digest in other] == [True, True, False]
