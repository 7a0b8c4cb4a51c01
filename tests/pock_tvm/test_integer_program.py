"""The search's integer program, against every choice there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pock_tvm.integer_program import Choices, Option, Weight, best, front, total

numbers = st.floats(-2, 5, allow_nan=False).map(lambda value: round(value, 3))
amounts = st.integers(1, 50)
options = st.builds(Option, numbers, amounts, amounts.map(lambda value: value / 1000))


@st.composite
def choices(draw) -> Choices:
    counts = draw(st.lists(st.integers(1, 6), min_size=0, max_size=3, unique=True))
    biases = {0: draw(options)} | {count: draw(options) for count in counts}
    weights = {
        f"w{index}": Weight(
            draw(st.integers(0, 6)), {ratio: draw(options) for ratio in draw(st.sampled_from([[1.0], [0.5, 1.0]]))}
        )
        for index in range(draw(st.integers(0, 4)))
    }
    return Choices(biases, weights)


def everything(choices: Choices):
    """Every choice that the gradient reaches."""
    for biases in choices.biases:
        own = [[None, *weight.options] if weight.depth <= biases else [None] for weight in choices.weights.values()]
        for picked in itertools.product(*own):
            named = zip(choices.weights, picked, strict=True)
            yield total(choices, biases, {name: ratio for name, ratio in named if ratio is not None})


@settings(max_examples=150, deadline=None)
@given(choices(), st.integers(1, 120), st.integers(1, 120))
def test_no_choice_within_the_budgets_is_better(choices, memory, milliseconds) -> None:
    held = [
        each for each in everything(choices) if each.memory <= memory and each.seconds <= milliseconds / 1000 + 1e-12
    ]
    found = best(choices, memory=memory, seconds=milliseconds / 1000 + 1e-9)
    if not held:
        assert found is None
    else:
        assert found.gain == pytest.approx(max(each.gain for each in held), abs=1e-5)
        assert found.memory <= memory + 1e-3
        assert found == total(choices, found.biases, found.weights)
        assert all(choices.weights[name].depth <= found.biases for name in found.weights)


@settings(max_examples=30, deadline=None)
@given(choices(), st.sampled_from(["memory", "seconds"]))
def test_no_point_of_a_front_is_beaten(choices, resource) -> None:
    points = front(choices, resource)
    assert points
    assert points[-1].gain == pytest.approx(max(each.gain for each in everything(choices)), abs=1e-5)
    assert [each.gain for each in points] == sorted(each.gain for each in points)
    for point in points:
        within = [
            each for each in everything(choices) if getattr(each, resource) < getattr(point, resource) * (1 - 1e-6)
        ]
        assert all(each.gain <= point.gain + 1e-5 for each in within)


def test_of_equal_gains_the_smaller_memory_is_taken() -> None:
    found = best(Choices({0: Option(0, 10, 1)}, {"w": Weight(0, {0.5: Option(1, 5, 1), 1.0: Option(1, 9, 1)})}))
    assert found.weights == {"w": 0.5}


def test_many_weights_take_no_time() -> None:
    rng = np.random.default_rng(0)

    def some() -> Option:
        return Option(float(rng.normal(0.3, 0.5)), float(rng.integers(1, 2**20)), float(rng.random()))

    weights = {f"w{index}": Weight(index % 60, {r: some() for r in (0.125, 0.25, 0.5, 1.0)}) for index in range(60)}
    choices = Choices({count: some() for count in range(61)}, weights)
    found = best(choices, memory=5 * 2**20, seconds=10)
    tries = []
    for _ in range(300):
        count = int(rng.integers(61))
        reached = [name for name, weight in weights.items() if weight.depth <= count and rng.random() < 0.3]
        tries.append(total(choices, count, {name: float(rng.choice([0.125, 0.25, 0.5, 1.0])) for name in reached}))
    held = [each.gain for each in tries if each.memory <= 5 * 2**20 and each.seconds <= 10]
    assert held
    assert found.gain >= max(held)
