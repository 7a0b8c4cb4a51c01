"""``pock.search``: from contributions, costs and budgets to the best scheme that holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from schedules.cpu import traits_of

from .analysis import compile_task, open_model
from .contribution import Candidate, Contributions, Task, depth_of, scheme_of
from .costs import Cost, TimeModel, cost_of
from .errors import ContributionError, MemoryBudgetError, PockError
from .executors import Workers
from .gains import expected_gains
from .integer_program import Choice, Choices, Option, Weight, best
from .profile import example, profile
from .scheme import Scheme
from .structure import Structure
from .targets import resolve_target
from .trainer import Trainer

PLANS = 12
"""How many schemes are planned at most to find the best that holds its budgets."""
CLOSE = 0.97
"""A plan that fills so much of a budget is not made larger."""


@dataclass(frozen=True)
class Found:
    """A scheme that holds its budgets, and what it was chosen from."""

    scheme: Scheme
    choice: Choice
    """Its gain, memory and time by the sum of its parts."""
    cost: Cost
    """What the planned program takes."""
    seconds: float
    """Of a step of the planned program, by the time model."""
    choices: Choices
    time_model: TimeModel
    plans: int
    """How many schemes were planned."""


def search(
    found: Contributions,
    *,
    memory: float | None = None,
    seconds: float | None = None,
    target: Any = None,
    profiles: Sequence[Sequence[Mapping[str, Any]]] = (),
    progress: Callable[[str, int, int], None] = lambda _what, _done, _all: None,
) -> Found:
    """The scheme of the largest expected gain whose planned program holds the budgets.

    Parameters
    ----------
    found : Contributions
        What :func:`pock_tvm.analyze` measured; the model of its task is read. Costs that it lacks, as those of the
        quick mode do, are planned and added to it.
    memory : float, optional
        Most bytes beside the weights: arena, optimizer state, gradient sums. The scheme holds them when it is compiled
        with this ``memory_budget``.
    seconds : float, optional
        Longest step, by the time model.
    target : optional
        As of :func:`pock_tvm.compile`. For another than this machine all candidates are planned anew.
    profiles : sequence of profiles, optional
        What :func:`pock_tvm.profile.profile` measured on the target, to calibrate the time model on. By default this
        machine is measured; for another its rates are scaled by vector width and cores.

    Raises
    ------
    ContributionError
        The contributions are of another model, or nothing in them can be chosen.
    PockError
        A budget is smaller than the smallest that will do, which is named.
    """
    model, structure = open_model(found.task)
    found.check_model(model)
    gains = expected_gains(found)
    costs = found.costs if target is None else {}
    costs |= planned_costs(found.task, [each for each in gains if each not in costs], target, progress)
    if profiles:
        time_model = TimeModel.fit(profiles, "profiles that were given")
    else:
        time_model = scaled(calibrate(found.task, structure, gains), target)
    choices = choices_of(gains, costs, structure, time_model)
    budgets = {"memory": memory or np.inf, "seconds": seconds or np.inf}
    return _hold(found.task, structure, choices, time_model, budgets, target, progress)


def choices_of(
    gains: Mapping[Candidate, float], costs: Mapping[Candidate, Cost], structure: Structure, time_model: TimeModel
) -> Choices:
    """Expected gains and costs as the integer program takes them."""
    numbers = sorted(each for each in gains if not each.weight)
    if not numbers:
        raise ContributionError("there is nothing to choose from: every run of the analysis failed")
    biases, memory, seconds = {}, 0.0, 0.0
    for each in numbers:  # a gradient that comes farther takes no less, whatever a plan was lucky with
        memory, seconds = max(memory, costs[each].memory), max(seconds, time_model.seconds(costs[each]))
        biases[each.biases] = Option(gains[each], memory, seconds)
    options: dict[str, dict[float, Option]] = {}
    depths = {each.weight: depth_of(structure, each.weight) for each in gains if each.weight}
    for each in gains:
        passed = [number for number in numbers if number.biases >= max(each.biases, depths.get(each.weight, 0))]
        if each.weight and passed:
            more = costs[each].minus(costs[passed[0]])
            # A weight that fits beside another peak may be the peak of a smaller scheme: what it keeps counts.
            size = max(more.memory, more.kept)
            options.setdefault(each.weight, {})[each.ratio] = Option(gains[each], size, time_model.seconds(more))
    return Choices(biases, {name: Weight(depths[name], given) for name, given in options.items()})


def _hold(
    task: Task,
    structure: Structure,
    choices: Choices,
    time_model: TimeModel,
    budgets: Mapping[str, float],
    target: Any,
    progress: Callable[[str, int, int], None],
) -> Found:
    """Solve, plan, and solve again with what the plan showed, until the best choice that holds is known."""
    held: Found | None = None
    planned: list[Found] = []
    factors = dict.fromkeys(budgets, 1.0)
    for plan in range(PLANS):
        choice = best(choices, **{name: budget * factors[name] for name, budget in budgets.items()})
        smallest = choice is None
        if choice is None:
            choice = _smallest(choices)
        if any(each.choice == choice for each in planned):
            break
        progress("planning schemes", plan, PLANS)
        scheme = scheme_of(structure, choice.biases, choice.weights)
        cost = _within(task, scheme, target, budgets["memory"])
        taken = {"memory": cost.memory, "seconds": time_model.seconds(cost)}
        now = Found(scheme, choice, cost, taken["seconds"], choices, time_model, plan + 1)
        planned.append(now)
        uses = {name: taken[name] / budget for name, budget in budgets.items()}
        if max(uses.values()) <= 1:
            if held is None or choice.gain > held.choice.gain:
                held = now
            if max(uses.values()) > CLOSE or all(np.isinf(budget) for budget in budgets.values()):
                break
            factors = {name: factors[name] * min(1.5, 0.99 / max(use, 1e-9)) for name, use in uses.items()}
        elif smallest:
            break
        else:
            factors = {name: factors[name] * (0.98 / use if use > 1 else 1.0) for name, use in uses.items()}
    if held is None:
        raise _too_small(planned, budgets)
    return replace(held, plans=len(planned))


def _within(task: Task, scheme: Scheme, target: Any, memory: float) -> Cost:
    """What a scheme takes when it is compiled for a memory budget; the least that it needs where that is more."""
    budget = None if np.isinf(memory) else int(memory)
    try:
        return cost_of(compile_task(task, scheme, target=target, memory_budget=budget, build=False))
    except MemoryBudgetError as error:
        return Cost(error.smallest)


def _smallest(choices: Choices) -> Choice:
    """The least that can be trained."""
    count = min(choices.biases, key=lambda count: choices.biases[count].memory)
    option = choices.biases[count]
    return Choice(count, {}, option.gain, option.memory, option.seconds)


def _too_small(planned: Sequence[Found], budgets: Mapping[str, float]) -> PockError:
    memory, seconds = min(each.cost.memory for each in planned), min(each.seconds for each in planned)
    if memory > budgets["memory"]:
        return MemoryBudgetError(
            f"a memory budget of {budgets['memory']:.0f} bytes is too small: the smallest scheme takes {memory:.0f} "
            "bytes beside the weights. Take a smaller batch, or a larger budget",
            int(memory),
        )
    return PockError(
        f"a latency of {1e3 * budgets['seconds']:.3g} ms is too short: the fastest scheme takes about "
        f"{1e3 * seconds:.3g} ms a step. Take a smaller batch, or a larger budget"
    )


# ---- costs -----------------------------------------------------------------------------------------------------------


def planned_costs(
    task: Task, wanted: Iterable[Candidate], target: Any, progress: Callable[[str, int, int], None]
) -> dict[Candidate, Cost]:
    """The cost of each candidate, and of the biases that it is compared to, planned and not built."""
    asked = list(dict.fromkeys(candidate for each in wanted for candidate in (each, Candidate(each.biases))))
    costs: dict[Candidate, Cost] = {}
    if not asked:
        return costs
    with Workers() as pool:
        for number, cost in pool.run(_planned_cost, [(task, each, target) for each in asked]):
            costs[asked[number]] = cost
            progress("planning candidates", len(costs), len(asked))
    return costs


def _planned_cost(task: Task, candidate: Candidate, target: Any) -> Cost:
    _, structure = open_model(task)
    scheme = scheme_of(structure, candidate.biases, candidate.shares)
    return cost_of(compile_task(task, scheme, target=target, build=False))


def calibrate(task: Task, structure: Structure, wanted: Iterable[Candidate]) -> TimeModel:
    """The time model of this machine, from the kernels of a small and of a large scheme, in real steps."""
    numbers = [each.biases for each in wanted if not each.weight]
    weights = {each.weight: 1.0 for each in wanted if each.weight}
    profiles: list[Sequence[Mapping[str, Any]]] = []
    for biases, shares in ((min(numbers), {}), (max(numbers), weights)):
        trainer = Trainer(compile_task(task, scheme_of(structure, biases, shares)))
        profiles.append(profile(trainer, *example(trainer.program)))
    return TimeModel.fit(profiles, "the kernels of two schemes, measured on this machine")


def scaled(model: TimeModel, target: Any) -> TimeModel:
    """The time model of another machine, as far as vector width and cores decide over it."""
    own, other = (traits_of(resolve_target(each)) for each in (None, target))
    if target is None or other == own:
        return model
    slower = own.lanes * own.cores / (other.lanes * other.cores)
    return replace(
        model,
        flop={kind: rate * slower for kind, rate in model.flop.items()},
        byte={kind: rate * slower for kind, rate in model.byte.items()},
        origin="this machine's kernels, scaled by vector width and cores: give --profile for better",
    )
