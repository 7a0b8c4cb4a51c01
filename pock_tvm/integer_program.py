"""Chooses what to train: the integer program of contributions against costs, solved exactly.

Section 3.2 of the PockEngine paper: ``max  gain_bias(k) + sum gain_weight(i, r)`` over the number k of last biases and
a ratio r for each weight i, so that memory and time stay within their budgets. The paper searches with evolution; the
program is small enough to be solved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

POINTS = 24
"""How many budgets a front is made of."""


@dataclass(frozen=True)
class Option:
    """One way to train a piece: what it brings, and what it takes beyond what is taken anyway."""

    gain: float
    """Points of accuracy."""
    memory: float
    """Bytes that training takes beside the weights."""
    seconds: float
    """Of one step."""


@dataclass(frozen=True)
class Weight:
    """A weight that may be trained in part."""

    depth: int
    """How many of the last biases have to be trained for its gradient to be there."""
    options: Mapping[float, Option]
    """By the ratio of its input channels."""


@dataclass(frozen=True)
class Choices:
    """Everything that a search chooses between."""

    biases: Mapping[int, Option]
    """By the number of last biases that are trained with the head; 0 is the head alone."""
    weights: Mapping[str, Weight]


@dataclass(frozen=True)
class Choice:
    """What a search chose, and what that brings and takes by the sum of its parts."""

    biases: int
    weights: Mapping[str, float]
    gain: float
    memory: float
    seconds: float


def best(choices: Choices, *, memory: float = np.inf, seconds: float = np.inf) -> Choice | None:
    """The choice of largest gain within the budgets, the smallest such; None where even the cheapest takes more.

    A binary variable for each number of biases, of which one is 1; one for each ratio of each weight, of which at most
    one is 1, and none where the gradient does not reach the weight.
    """
    counts = list(choices.biases)
    pairs = [(name, ratio) for name, weight in choices.weights.items() for ratio in weight.options]
    options = [choices.biases[count] for count in counts]
    options += [choices.weights[name].options[ratio] for name, ratio in pairs]
    size = len(options)
    rows: list[tuple[dict[int, float], float, float]] = [(dict.fromkeys(range(len(counts)), 1.0), 1.0, 1.0)]
    for name, weight in choices.weights.items():
        own = [len(counts) + at for at, (other, _) in enumerate(pairs) if other == name]
        reached = [at for at, count in enumerate(counts) if count >= weight.depth]
        rows.append((dict.fromkeys(own, 1.0) | dict.fromkeys(reached, -1.0), -np.inf, 0.0))
    for budget, amounts in (
        (memory, [option.memory for option in options]),
        (seconds, [option.seconds for option in options]),
    ):
        if np.isfinite(budget):
            scale = max(1e-30, *map(abs, amounts), budget)
            rows.append(({at: amount / scale for at, amount in enumerate(amounts)}, -np.inf, budget / scale))
    gains = np.array([option.gain for option in options])
    memories = np.array([option.memory for option in options])
    # Of equal gains the smaller memory: by less than any gain that was measured.
    tie = 1e-6 * max(1e-9, np.abs(gains).max()) / max(1.0, np.abs(memories).sum())
    solution = milp(
        -(gains - tie * memories),
        integrality=np.ones(size),
        bounds=Bounds(0, 1),
        constraints=[_constraint(rows, size)],
        options={"mip_rel_gap": 0.0},
    )
    if solution.x is None:
        return None
    return _chosen(choices, counts, pairs, np.round(solution.x).astype(bool))


def _constraint(rows: Sequence[tuple[Mapping[int, float], float, float]], size: int) -> LinearConstraint:
    at = [(row, column, value) for row, (entries, _, _) in enumerate(rows) for column, value in entries.items()]
    lines, columns, values = zip(*at, strict=True)
    matrix = csr_array((values, (lines, columns)), shape=(len(rows), size))
    return LinearConstraint(matrix, [low for _, low, _ in rows], [high for _, _, high in rows])


def _chosen(choices: Choices, counts: Sequence[int], pairs: Sequence[tuple[str, float]], taken: np.ndarray) -> Choice:
    count = next(count for count, is_taken in zip(counts, taken[: len(counts)], strict=True) if is_taken)
    weights = dict(pair for pair, is_taken in zip(pairs, taken[len(counts) :], strict=True) if is_taken)
    return total(choices, count, weights)


def total(choices: Choices, biases: int, weights: Mapping[str, float]) -> Choice:
    """What a choice brings and takes, by the sum of its parts."""
    parts = [choices.biases[biases], *(choices.weights[name].options[ratio] for name, ratio in weights.items())]
    gain, memory, seconds = (sum(getattr(part, amount) for part in parts) for amount in ("gain", "memory", "seconds"))
    return Choice(biases, dict(weights), gain, memory, seconds)


def front(choices: Choices, resource: str, **budgets: float) -> list[Choice]:
    """Best choices for less and less of a resource (``memory`` or ``seconds``), each exact, the smallest first.

    ``budgets`` bound the other resource. From the choice of largest gain down to the smallest there is, the budget
    falls by equal factors.
    """
    found: list[Choice] = []
    most = best(choices, **budgets)
    least = min(getattr(option, resource) for option in choices.biases.values())
    if most is None:
        return found
    for budget in np.geomspace(max(getattr(most, resource), least), least, POINTS) if least > 0 else ():
        choice = best(choices, **(budgets | {resource: budget * (1 + 1e-9)}))
        if choice is not None and (not found or choice.gain < found[-1].gain):
            found.append(choice)
    return found[::-1]
