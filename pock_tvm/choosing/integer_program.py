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

from .solver_output import silenced

EXACT = {"mip_rel_gap": 0.0}
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
    """How many of the last biases the gradient passes on its way to it."""
    options: Mapping[float, Option]
    """By the ratio of its input channels."""


@dataclass(frozen=True)
class Choices:
    """Everything that a search chooses between."""

    biases: Mapping[int, Option]
    """By the number of last biases that are trained with the head; 0 is the head alone. What they take is what it takes
    for the gradient to come so far, and never falls with the number."""
    weights: Mapping[str, Weight]
    micro_batches: int = 1
    """In how many parts of its batch a step runs that takes so much."""
    enough: float = np.inf
    """The sum of gains beyond which more brings no more."""

    def worth(self, gain: float) -> float:
        """What a sum of gains counts."""
        return min(gain, self.enough)


@dataclass(frozen=True)
class Choice:
    """What a search chose, and what that brings and takes by the sum of its parts."""

    biases: int
    weights: Mapping[str, float]
    gain: float
    memory: float
    seconds: float
    micro_batches: int = 1
    """In how many parts of its batch a step runs that takes so much."""


def best(choices: Choices, *, memory: float = np.inf, seconds: float = np.inf) -> Choice | None:
    """The choice of largest gain within the budgets, the smallest such, or the smallest whose gain is enough; None
    where even the cheapest takes more.

    Binary variables: for each number of biases whether so many are trained, and whether the gradient comes so far (as
    far as the biases and weights that are trained); for each ratio of each weight whether so much is trained.
    """
    counts = sorted(choices.biases)
    pairs = [(name, ratio) for name, weight in choices.weights.items() for ratio in weight.options]
    steps = [choices.biases[count] for count in counts]
    shares = [choices.weights[name].options[ratio] for name, ratio in pairs]
    first_share = 2 * len(counts)  # the numbers of biases come first, then how far the gradient comes
    one_of = dict.fromkeys(range(len(counts)), 1.0)
    rows: list[tuple[dict[int, float], float, float]] = [
        (one_of, 1.0, 1.0),
        ({len(counts) + at: 1.0 for at in one_of}, 1.0, 1.0),
        ({at: float(at) for at in one_of} | {len(counts) + at: -float(at) for at in one_of}, -np.inf, 0.0),
    ]
    for name, weight in choices.weights.items():
        own = [first_share + at for at, (other, _) in enumerate(pairs) if other == name]
        reached = [len(counts) + at for at, count in enumerate(counts) if count >= weight.depth]
        rows.append((dict.fromkeys(own, 1.0) | dict.fromkeys(reached, -1.0), -np.inf, 0.0))
    gains = np.array([step.gain for step in steps] + [0.0] * len(counts) + [share.gain for share in shares])
    memories = np.array([0.0] * len(counts) + [option.memory for option in [*steps, *shares]])
    times = np.array([0.0] * len(counts) + [option.seconds for option in [*steps, *shares]])
    for budget, amounts in ((memory, memories), (seconds, times)):
        if np.isfinite(budget):
            unit = max(1e-30, np.abs(amounts).max(), budget)
            rows.append((dict(enumerate(amounts / unit)), -np.inf, budget / unit))
    scale = np.abs(gains).max() or 1.0  # the solver's tolerances are absolute
    gains = gains / scale
    found = _solved(-gains, rows)
    if found is None:
        return None
    # Of what counts as much the smallest memory.
    rows.append((dict(enumerate(gains)), choices.worth(scale * float(gains @ found)) / scale - 1e-7, np.inf))
    smallest = _solved(memories / max(1.0, np.abs(memories).max()), rows)
    taken = found if smallest is None else smallest
    count = next(count for count, is_taken in zip(counts, taken, strict=False) if is_taken)
    return total(
        choices, count, dict(pair for pair, is_taken in zip(pairs, taken[first_share:], strict=True) if is_taken)
    )


def _solved(objective: np.ndarray, rows: Sequence[tuple[Mapping[int, float], float, float]]) -> np.ndarray | None:
    """Which binary variables are 1 where the objective is smallest; None where the rows leave nothing."""
    at = [(row, column, value) for row, (entries, _, _) in enumerate(rows) for column, value in entries.items()]
    lines, columns, values = zip(*at, strict=True)
    matrix = csr_array((values, (lines, columns)), shape=(len(rows), len(objective)))
    within = LinearConstraint(matrix, [low for _, low, _ in rows], [high for _, _, high in rows])
    with silenced(1):  # HiGHS says so when it mends a rounded solution (SciPy 1.17)
        solution = milp(
            objective, integrality=np.ones(len(objective)), bounds=Bounds(0, 1), constraints=[within], options=EXACT
        )
    return None if solution.x is None else np.round(solution.x).astype(bool)


def total(choices: Choices, biases: int, weights: Mapping[str, float]) -> Choice:
    """What a choice brings and takes, by the sum of its parts: the gradient comes as far as it has to."""
    shares = [choices.weights[name].options[ratio] for name, ratio in weights.items()]
    deepest = max([biases, *(choices.weights[name].depth for name in weights)])
    reach = choices.biases[min(count for count in choices.biases if count >= deepest)]
    memory = reach.memory + sum(share.memory for share in shares)
    seconds = reach.seconds + sum(share.seconds for share in shares)
    gain = choices.biases[biases].gain + sum(share.gain for share in shares)
    return Choice(biases, dict(weights), gain, memory, seconds, choices.micro_batches)


def best_of(sets: Sequence[Choices], **budgets: float) -> Choice | None:
    """The best choice within budgets from any of several sets; of those that bring as much that from the first set."""
    found: Choice | None = None
    for choices in sets:
        choice = best(choices, **budgets)
        if choice is not None and (found is None or _brings_more(choice, found, choices)):
            found = choice
    return found


def _brings_more(one: Choice, other: Choice, choices: Choices) -> bool:
    """Whether a choice counts more than another, beyond what sums are rounded by."""
    before = choices.worth(other.gain)
    return choices.worth(one.gain) > before + 1e-6 * abs(before)


def front(sets: Sequence[Choices], resource: str, **budgets: float) -> list[Choice]:
    """Best choices for less and less of a resource (``memory`` or ``seconds``), each exact, the smallest first.

    ``budgets`` bound the other resource. From the choice of largest gain down to the smallest there is, the budget
    falls by equal factors.
    """
    found: list[Choice] = []
    most = best_of(sets, **budgets)
    least = min(getattr(option, resource) for choices in sets for option in choices.biases.values())
    if most is None:
        return found
    falling = np.geomspace if least > 0 else np.linspace
    for budget in falling(max(getattr(most, resource), least), least, POINTS):
        choice = best_of(sets, **(budgets | {resource: budget * (1 + 1e-9)}))
        if choice is None:
            break
        if found and not _brings_more(found[-1], choice, sets[0]):  # as much for less
            found.pop()
        found.append(choice)
    return found[::-1]
