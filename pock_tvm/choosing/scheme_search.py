"""``pock.search``: from contributions, costs and budgets to the best scheme that holds them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..compiler.driver import batch_parts
from ..errors import BatchError, ContributionError, MemoryBudgetError, PockError
from ..frontend.structure import Structure
from ..schemes.scheme import Scheme
from .analysis import Progress, planned_costs
from .candidates import Candidate, depth_of, scheme_of
from .contributions import Contributions
from .costs import Cost, cost_of
from .expected_gains import enough, expected_gains
from .integer_program import Choice, Choices, Option, Weight, best, best_of, total
from .task import Task
from .time_model import Profiles, TimeModel, calibrate, scaled
from .worker import compile_task, open_model

PLANS = 10
"""How many schemes are planned at most to find the best that holds its budgets."""
CLOSE = 0.97
"""Between what held and what did not, so near to each other, nothing is looked for."""


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
    profiles: Profiles = (),
    progress: Progress = lambda _what, _done, _all: None,
) -> Found:
    """The scheme of the largest expected gain whose planned program holds the budgets.

    Parameters
    ----------
    found : Contributions
        What :func:`pock_tvm.analyze` measured; the model of its task is read. Costs that it lacks are planned and added
        to it.
    memory : float, optional
        Most bytes beside the weights: arena, optimizer state, gradient sums. The scheme holds them when it is compiled
        with this ``memory_budget``.
    seconds : float, optional
        Longest step, by the time model.
    target : optional
        As of :func:`pock_tvm.compile`. For another than this machine all candidates are planned anew.
    profiles : sequence of profiles, optional
        What :func:`pock_tvm.device.profile.profile` measured on the target, to calibrate the time model on. By
        default this machine is measured; for another its rates are scaled by vector width and cores.

    Raises
    ------
    ContributionError
        The contributions are of another model, or nothing in them can be chosen.
    PockError
        A budget is smaller than the smallest that will do, which is named.
    """
    budgets = budgets_of(memory, seconds)
    structure, sets, time_model = prepared(found, target, profiles, progress)
    return _hold(found.task, structure, suited(sets, budgets), time_model, budgets, target, progress)


def budgets_of(memory: float | None, seconds: float | None) -> dict[str, float]:
    """Budgets by resource; one that is not given is no bound."""
    return {"memory": math.inf if memory is None else memory, "seconds": math.inf if seconds is None else seconds}


def prepared(
    found: Contributions,
    target: Any = None,
    profiles: Profiles = (),
    progress: Progress = lambda _what, _done, _all: None,
) -> tuple[Structure, list[Choices], TimeModel]:
    """What there is to choose from, with what it is expected to bring and takes: a set for each number of micro-batches
    that a step can run in, fewest first. Arguments and errors are those of :func:`search`."""
    model, structure = open_model(found.task)
    found.check_model(model)
    structure = structure.reading(found.rows)
    gains = expected_gains(found)
    if all(each.weight for each in gains):
        raise ContributionError("there is nothing to choose from: no run of the analysis succeeded")
    costs = found.costs if target is None else {}
    missing = [each for each in gains if each not in costs]
    costs |= planned_costs(found.task, missing, target, progress, found.rows)
    if profiles:
        time_model = TimeModel.fit(profiles, profiles, "profiles that were given, and fits their steps")
    else:
        time_model = scaled(calibrate(found.task, structure, gains), target)
    parts = batch_parts(model)
    if len(parts) > 1 and not _can_be_cut(found.task, structure, parts[-1]):
        parts = parts[:1]
    most = enough(found)
    sets = [replace(choices_of(gains, costs, structure, time_model, count), enough=most) for count in parts]
    return structure, sets, time_model


def _can_be_cut(task: Task, structure: Structure, parts: int) -> bool:
    """Whether a step can run in so many micro-batches."""
    try:
        compile_task(task, scheme_of(structure, 0, {}), micro_batches=parts, build=False)
    except BatchError:
        return False
    return True


def suited(sets: Sequence[Choices], budgets: Mapping[str, float]) -> Choices:
    """The set from which most can be had within budgets; the one of most micro-batches if nothing can."""
    chosen = best_of(sets, **budgets)
    return next((each for each in sets if chosen and each.micro_batches == chosen.micro_batches), sets[-1])


def choices_of(
    gains: Mapping[Candidate, float],
    costs: Mapping[Candidate, Cost],
    structure: Structure,
    time_model: TimeModel,
    micro_batches: int,
) -> Choices:
    """Expected gains and costs of steps in so many micro-batches, as the integer program takes them."""
    costs = {each: cost.in_parts(micro_batches) for each, cost in costs.items()}
    numbers = sorted(each for each in gains if not each.weight)
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
            # Other kernels may be chosen beside it, and the model be off: nothing is faster for being trained.
            seconds = max(0.0, time_model.seconds(more))
            options.setdefault(each.weight, {})[each.ratio] = Option(gains[each], size, seconds)
    return Choices(biases, {name: Weight(depths[name], given) for name, given in options.items()}, micro_batches)


def _hold(
    task: Task,
    structure: Structure,
    choices: Choices,
    time_model: TimeModel,
    budgets: Mapping[str, float],
    target: Any,
    progress: Progress,
) -> Found:
    """Solve, plan, and solve again with what the plan showed.

    Sums of parts are near what a plan takes, not equal to it. A sum's limit starts where the smallest and the largest
    choice say that the budget would be filled; it falls below what did not hold, and rises halfway between what held
    and what did not, until nothing is left between them.
    """
    planned: list[Found] = []

    def plan(choice: Choice) -> Found:
        found = next((each for each in planned if each.choice == choice), None)
        if found is None:
            progress("planning schemes", len(planned), PLANS)
            found = _plan(task, structure, choices, choice, time_model, target, budgets["memory"])
            planned.append(found)
        return found

    held = plan(_smallest(choices))
    if _over(held, budgets):
        raise _too_small(held, budgets)
    now = plan(best(choices))  # type: ignore[arg-type] # without budgets there is always a choice
    floors = {name: _summed(held, name) for name in budgets}  # no choice of less is better than what is held
    failed = dict.fromkeys(budgets, math.inf)
    limits: dict[str, float] = {}
    while len(planned) < PLANS:
        exceeded = _over(now, budgets)
        failed |= {name: min(failed[name], _summed(now, name)) for name in exceeded}
        if not exceeded:
            held, floors = now if now.choice.gain > held.choice.gain else held, floors | limits
        bounded = [name for name, sum_ in failed.items() if not math.isinf(sum_)]
        if not bounded or any(CLOSE * failed[name] < floors[name] for name in bounded):
            break
        limits = {
            name: _between(held, now, name, budgets[name]) if name in exceeded else (floors[name] + failed[name]) / 2
            for name in bounded
        }
        choice = best(choices, **limits)
        if choice is None:
            break
        now = plan(choice)
    return replace(held, plans=len(planned))


def _over(found: Found, budgets: Mapping[str, float]) -> list[str]:
    """The resources of which the planned program of a scheme takes too much."""
    return [name for name, budget in budgets.items() if _taken(found, name) > budget]


def _taken(found: Found, resource: str) -> float:
    """What the planned program of a scheme takes of a resource."""
    return float(found.cost.memory if resource == "memory" else found.seconds)


def _summed(found: Found, resource: str) -> float:
    """What a scheme takes of a resource by the sum of its parts."""
    return float(getattr(found.choice, resource))


def _between(held: Found, failed: Found, resource: str, budget: float) -> float:
    """The sum at which a budget would be filled, on the line from a scheme that held it to one that did not, and not
    right at either."""
    low, high = (_summed(each, resource) for each in (held, failed))
    least, most = (_taken(each, resource) for each in (held, failed))
    return low + min(max((budget - least) / (most - least), 0.1), 0.9) * (high - low)


def _plan(
    task: Task,
    structure: Structure,
    choices: Choices,
    choice: Choice,
    time_model: TimeModel,
    target: Any,
    memory: float,
) -> Found:
    """A choice as a scheme, with what its program takes."""
    scheme = scheme_of(structure, choice.biases, choice.weights)
    cost = _within(task, scheme, target, memory)
    return Found(scheme, choice, cost, time_model.seconds(cost), choices, time_model, 1)


def _within(task: Task, scheme: Scheme, target: Any, memory: float) -> Cost:
    """What a scheme takes when it is compiled for a memory budget; what it needs at least where that is more."""
    budget = None if math.isinf(memory) else int(memory)
    try:
        return cost_of(compile_task(task, scheme, target=target, memory_budget=budget, build=False))
    except MemoryBudgetError as error:
        return Cost(error.smallest)


def _smallest(choices: Choices) -> Choice:
    """The least that can be trained."""
    count = min(choices.biases, key=lambda count: choices.biases[count].memory)
    return total(choices, count, {})


def _too_small(smallest: Found, budgets: Mapping[str, float]) -> PockError:
    memory = int(smallest.cost.memory)
    if memory > budgets["memory"]:
        return MemoryBudgetError(
            f"a memory budget of {budgets['memory']:.0f} bytes is too small: the smallest scheme takes {memory} "
            "bytes beside the weights. Take a smaller batch, or a larger budget",
            memory,
        )
    return PockError(
        f"a latency of {1e3 * budgets['seconds']:g} ms is too short: the fastest scheme takes about "
        f"{math.ceil(1e6 * smallest.seconds) / 1e3:g} ms a step. Take a smaller batch, or a larger budget"
    )
