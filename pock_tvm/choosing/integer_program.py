"""The integer program of what to train: expected gains against costs, solved exactly.

Section 3.2 of the PockEngine paper: ``max  gain_bias(k) + sum gain_weight(i, r)`` over the number k of last biases and
a ratio r for each weight i, subject to budgets of memory and time. The paper searches with evolution; the program is
small enough to be solved exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from ..compiler.training_options import FLOAT32
from .solver_output import silenced

EXACT = {"mip_rel_gap": 0.0}
"""Options of HiGHS: solve to optimality."""
FRONT_POINTS = 24
"""Number of budgets that a front is computed for."""


@dataclass(frozen=True)
class Option:
    """One way to train a part of the network: its gain and its additional cost."""

    gain: float
    """Points of accuracy."""
    memory: float
    """Bytes beside the weights."""
    seconds: float
    """Time of a step."""


@dataclass(frozen=True)
class Weight:
    """A weight and its options."""

    depth: int
    """Number of last biases between the weight and the loss."""
    options: Mapping[float, Option]
    """Options by channel ratio."""


@dataclass(frozen=True)
class Choices:
    """The search space: all options, for one number of micro-batches and one type of frozen layers."""

    biases: Mapping[int, Option]
    """Options by number of last biases that are trained with the head; 0 is the head alone. Their cost is that of the
    backward graph to this depth, and does not decrease with the number."""
    weights: Mapping[str, Weight]
    micro_batches: int = 1
    """Number of micro-batches of a step that these costs are for."""
    frozen: str = FLOAT32
    """Type of frozen layers before what is trained that these costs are for."""
    gain_cap: float = np.inf
    """Sum of gains beyond which more training does not help (:func:`pock_tvm.choosing.expected_gains.gain_cap`)."""

    def capped(self, gain: float) -> float:
        """Cap a sum of gains."""
        return min(gain, self.gain_cap)


@dataclass(frozen=True)
class Choice:
    """A solution: what is trained, with gain and costs as sums over its parts."""

    biases: int
    weights: Mapping[str, float]
    gain: float
    memory: float
    seconds: float
    micro_batches: int = 1
    """Number of micro-batches of a step that these costs are for."""
    frozen: str = FLOAT32
    """Type of frozen layers that these costs are for."""


def best(choices: Choices, *, memory: float = np.inf, seconds: float = np.inf) -> Choice | None:
    """Find the choice of largest capped gain within the budgets, and among equals the one of least memory; None if even
    the cheapest exceeds them.

    Binary variables: for each number of biases, whether that many are trained, and whether the backward graph has that
    depth (at least that of the trained biases and weights); for each ratio of each weight, whether it is trained so.
    """
    counts = sorted(choices.biases)
    pairs = [(name, ratio) for name, weight in choices.weights.items() for ratio in weight.options]
    steps = [choices.biases[count] for count in counts]
    options = [choices.weights[name].options[ratio] for name, ratio in pairs]
    first_option = 2 * len(counts)  # columns: numbers of biases, then depths, then the options of weights
    one_of = dict.fromkeys(range(len(counts)), 1.0)
    rows: list[tuple[dict[int, float], float, float]] = [
        (one_of, 1.0, 1.0),
        ({len(counts) + at: 1.0 for at in one_of}, 1.0, 1.0),
        ({at: float(at) for at in one_of} | {len(counts) + at: -float(at) for at in one_of}, -np.inf, 0.0),
    ]
    for name, weight in choices.weights.items():
        own = [first_option + at for at, (other, _) in enumerate(pairs) if other == name]
        reached = [len(counts) + at for at, count in enumerate(counts) if count >= weight.depth]
        rows.append((dict.fromkeys(own, 1.0) | dict.fromkeys(reached, -1.0), -np.inf, 0.0))
    gains = np.array([step.gain for step in steps] + [0.0] * len(counts) + [option.gain for option in options])
    memories = np.array([0.0] * len(counts) + [option.memory for option in [*steps, *options]])
    times = np.array([0.0] * len(counts) + [option.seconds for option in [*steps, *options]])
    for budget, amounts in ((memory, memories), (seconds, times)):
        if np.isfinite(budget):
            unit = max(1e-30, np.abs(amounts).max(), budget)
            rows.append((dict(enumerate(amounts / unit)), -np.inf, budget / unit))
    scale = np.abs(gains).max() or 1.0  # the solver's tolerances are absolute
    gains = gains / scale
    largest = _solved(-gains, rows)
    if largest is None:
        return None
    # Then the least memory among choices of that capped gain.
    rows.append((dict(enumerate(gains)), choices.capped(scale * float(gains @ largest)) / scale - 1e-7, np.inf))
    smallest = _solved(memories / max(1.0, np.abs(memories).max()), rows)
    solution = largest if smallest is None else smallest
    count = next(count for count, is_chosen in zip(counts, solution, strict=False) if is_chosen)
    chosen = zip(pairs, solution[first_option:], strict=True)
    return total(choices, count, dict(pair for pair, is_chosen in chosen if is_chosen))


def _solved(objective: np.ndarray, rows: Sequence[tuple[Mapping[int, float], float, float]]) -> np.ndarray | None:
    """Minimise a linear objective over binary variables, subject to rows ``(coefficients, lower, upper)``; None if
    infeasible."""
    at = [(row, column, value) for row, (entries, _, _) in enumerate(rows) for column, value in entries.items()]
    lines, columns, values = zip(*at, strict=True)
    matrix = csr_array((values, (lines, columns)), shape=(len(rows), len(objective)))
    within = LinearConstraint(matrix, [low for _, low, _ in rows], [high for _, _, high in rows])
    with silenced(1):  # HiGHS prints a line when it repairs a rounded solution (SciPy 1.17)
        solution = milp(
            objective, integrality=np.ones(len(objective)), bounds=Bounds(0, 1), constraints=[within], options=EXACT
        )
    return None if solution.x is None else np.round(solution.x).astype(bool)


def total(choices: Choices, biases: int, weights: Mapping[str, float]) -> Choice:
    """Sum gain and costs of a choice; the backward graph is as deep as its deepest trained part."""
    options = [choices.weights[name].options[ratio] for name, ratio in weights.items()]
    deepest = max([biases, *(choices.weights[name].depth for name in weights)])
    reach = choices.biases[min(count for count in choices.biases if count >= deepest)]
    memory = reach.memory + sum(option.memory for option in options)
    seconds = reach.seconds + sum(option.seconds for option in options)
    gain = choices.biases[biases].gain + sum(option.gain for option in options)
    return Choice(biases, dict(weights), gain, memory, seconds, choices.micro_batches, choices.frozen)


def best_of(alternatives: Sequence[Choices], **budgets: float) -> Choice | None:
    """Find the best choice within budgets over several search spaces; among equals the one from the first space."""
    result: Choice | None = None
    for choices in alternatives:
        choice = best(choices, **budgets)
        if choice is not None and (result is None or _is_better(choice, result, choices)):
            result = choice
    return result


def _is_better(one: Choice, other: Choice, choices: Choices) -> bool:
    """Compare capped gains, up to rounding of sums."""
    before = choices.capped(other.gain)
    return choices.capped(one.gain) > before + 1e-6 * abs(before)


def front(alternatives: Sequence[Choices], resource: str, **budgets: float) -> list[Choice]:
    """Compute the Pareto front of gain against a resource (``memory`` or ``seconds``), smallest choice first.

    Each point is solved exactly. Budgets fall geometrically from the choice of largest gain to the smallest choice;
    ``budgets`` bound the other resource.
    """
    points: list[Choice] = []
    best_choice = best_of(alternatives, **budgets)
    least = min(getattr(option, resource) for choices in alternatives for option in choices.biases.values())
    if best_choice is None:
        return points
    falling = np.geomspace if least > 0 else np.linspace
    for budget in falling(max(getattr(best_choice, resource), least), least, FRONT_POINTS):
        choice = best_of(alternatives, **(budgets | {resource: budget * (1 + 1e-9)}))
        if choice is None:
            break
        if points and not _is_better(points[-1], choice, alternatives[0]):  # dominated: equal gain for less
            points.pop()
        points.append(choice)
    return points[::-1]
