"""The search's integer program, against every choice there is."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pock_tvm.choosing.integer_program import Choice, Choices, Option, Weight, best, best_of, front, total

numbers = st.floats(-2, 5, allow_nan=False).map(lambda value: round(value, 3))
amounts = st.integers(1, 50)
options = st.builds(Option, numbers, amounts, amounts.map(lambda value: value / 1000))


@st.composite
def choices(draw) -> Choices:
    biases, memory, seconds = {}, 0, 0.0
    for count in sorted({0, 6} | set(draw(st.lists(st.integers(1, 5), max_size=3)))):
        step = draw(options)
        memory, seconds = memory + step.memory, seconds + step.seconds  # what they take never falls with the number
        biases[count] = Option(step.gain, memory, seconds)
    ratios = st.sampled_from([[1.0], [0.5, 1.0]])
    weights = {
        f"w{index}": Weight(draw(st.integers(0, 6)), {ratio: draw(options) for ratio in draw(ratios)})
        for index in range(draw(st.integers(0, 4)))
    }
    return Choices(biases, weights)


def everything(choices: Choices):
    """Every choice, the gradient coming as far as it has to: counted here once more."""
    for biases in choices.biases:
        for picked in itertools.product(*([None, *weight.options] for weight in choices.weights.values())):
            named = {name: ratio for name, ratio in zip(choices.weights, picked, strict=True) if ratio is not None}
            deepest = max([biases] + [choices.weights[name].depth for name in named])
            reach = min(count for count in choices.biases if count >= deepest)
            parts = [choices.weights[name].options[ratio] for name, ratio in named.items()]
            memory, seconds = (
                getattr(choices.biases[reach], amount) + sum(getattr(part, amount) for part in parts)
                for amount in ("memory", "seconds")
            )
            yield Choice(biases, named, choices.biases[biases].gain + sum(part.gain for part in parts), memory, seconds)


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
        assert any(found == each for each in held)


@settings(max_examples=100, deadline=None)
@given(choices(), st.integers(1, 120), st.integers(-5, 20))
def test_no_more_is_taken_than_is_enough(choices, memory, enough) -> None:
    held = [each for each in everything(choices) if each.memory <= memory]
    found = best(replace(choices, gain_cap=enough), memory=memory)
    if held:
        worth = min(max(each.gain for each in held), enough)
        assert found.gain >= worth - 1e-5
        assert found.memory == pytest.approx(min(each.memory for each in held if each.gain >= worth - 1e-9))


@settings(max_examples=30, deadline=None)
@given(st.lists(choices(), min_size=1, max_size=2), st.sampled_from(["memory", "seconds"]))
def test_no_point_of_a_front_is_beaten(sets, resource) -> None:
    points = front(sets, resource)
    possible = [each for choices in sets for each in everything(choices)]
    assert points
    assert points[-1].gain == pytest.approx(max(each.gain for each in possible), abs=1e-5)
    assert [each.gain for each in points] == sorted({each.gain for each in points})
    for point in points:
        within = [each for each in possible if getattr(each, resource) < getattr(point, resource) * (1 - 1e-6)]
        assert all(each.gain <= point.gain + 1e-5 for each in within)


def test_a_front_has_the_least_that_brings_as_much() -> None:
    large, small = (Choices({0: Option(0, size, 1)}, {"w": Weight(0, {1.0: Option(1, size, 1)})}) for size in (100, 10))
    assert [(each.gain, each.memory) for each in front([large, small], "memory")] == [(0, 10), (1, 20)]


def test_of_sets_that_hold_enough_the_one_in_fewest_parts_is_taken() -> None:
    sets = [
        Choices({0: Option(0, 10, 1)}, {"w": Weight(0, {1.0: Option(gain, 5, 1)})}, parts, gain_cap=1.0)
        for gain, parts in ((2, 1), (3, 2))
    ]
    assert best_of(sets).micro_batches == 1


def test_of_equal_gains_the_smaller_memory_is_taken() -> None:
    found = best(Choices({0: Option(0, 10, 1)}, {"w": Weight(0, {0.5: Option(1, 5, 1), 1.0: Option(1, 9, 1)})}))
    assert found.weights == {"w": 0.5}


@settings(max_examples=20, deadline=None)
@given(choices(), st.integers(1, 120))
def test_the_scale_of_gains_does_not_matter(choices, memory) -> None:
    """First-order scores of a network that has converged are tiny."""

    def scaled(option: Option) -> Option:
        return Option(1e-9 * option.gain, option.memory, option.seconds)

    small = Choices(
        {count: scaled(option) for count, option in choices.biases.items()},
        {name: Weight(w.depth, {r: scaled(o) for r, o in w.options.items()}) for name, w in choices.weights.items()},
    )
    one, other = best(choices, memory=memory), best(small, memory=memory)
    assert (one is None) == (other is None)
    if one is not None:
        assert other.gain == pytest.approx(1e-9 * one.gain, abs=1e-14)


def test_of_many_choices_none_drawn_at_random_is_better() -> None:
    rng = np.random.default_rng(0)

    def some() -> Option:
        return Option(float(rng.normal(0.3, 0.5)), float(rng.integers(1, 2**20)), float(rng.random()))

    weights = {f"w{index}": Weight(index, {r: some() for r in (0.125, 0.25, 0.5, 1.0)}) for index in range(60)}
    biases = {count: Option(float(rng.normal()), 2**15 * count, 0.05 * count) for count in range(61)}
    choices = Choices(biases, weights)
    found = best(choices, memory=5 * 2**20, seconds=10)
    tries = []
    for _ in range(300):
        count = int(rng.integers(61))
        share = 0.3 * rng.random()
        picked = [name for name in weights if rng.random() < share]
        tries.append(total(choices, count, {name: float(rng.choice([0.125, 0.25, 0.5, 1.0])) for name in picked}))
    held = [each.gain for each in tries if each.memory <= 5 * 2**20 and each.seconds <= 10]
    assert held
    assert found.gain >= max(held)
