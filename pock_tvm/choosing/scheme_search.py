"""``pock.search``: finds the scheme of largest expected gain within budgets of memory and time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..compiler.fitting import batch_parts
from ..compiler.training_options import FLOAT32, FROZEN
from ..device.arguments import Kind, one_of, require
from ..errors import BatchError, ContributionError, MemoryBudgetError, NothingFrozenError, PockError
from ..frontend.structure import Structure
from ..schemes.scheme import Scheme
from .analysis import Progress, planned_costs
from .candidates import Candidate, depth_of, scheme_of
from .contributions import Contributions
from .costs import Cost, cost_of
from .eight_bits import measured_drop
from .expected_gains import expected_gains, gain_cap
from .integer_program import Choice, Choices, Option, Weight, best, best_of, total
from .task import Task
from .time_model import Profiles, TimeModel, calibrate, scaled
from .worker import compile_task, open_model

MAX_PLANS = 10
"""Largest number of schemes that a search plans; each is a compilation without a build."""
STOP_RATIO = 0.97
"""Stop bisecting when feasible and infeasible budgets differ by less than this ratio."""


@dataclass(frozen=True)
class SearchResult:
    """A scheme within its budgets, and the search space."""

    scheme: Scheme
    choice: Choice
    """Gain, memory and time as sums over the scheme's parts."""
    cost: Cost
    """Cost of the planned program."""
    seconds: float
    """Step time of the planned program, by the time model."""
    choices: Choices
    time_model: TimeModel
    plans: int
    """Number of schemes that were planned."""
    frozen: str = FLOAT32
    """Type of frozen layers before what is trained, for :func:`pock_tvm.compile`."""


def search(
    found: Contributions,
    *,
    memory: float | None = None,
    seconds: float | None = None,
    target: Any = None,
    profiles: Profiles = (),
    frozen: str = FLOAT32,
    progress: Progress = lambda _label, _done, _count: None,
) -> SearchResult:
    """Find the scheme of largest expected gain whose planned program is within the budgets.

    Parameters
    ----------
    found : Contributions
        Result of :func:`pock_tvm.analyze`; the model of its task is read. Missing costs are planned and added to it,
        as are runs of the head behind eight bits.
    memory : float, optional
        Budget in bytes beside the weights: arena, optimizer state, gradient sums. Compile the scheme with this
        ``memory_budget``.
    seconds : float, optional
        Budget of a step's time, by the time model.
    target : optional
        As in :func:`pock_tvm.compile`. For another machine all candidates are planned anew.
    profiles : sequence of profiles, optional
        Measurements of :func:`pock_tvm.device.profile.profile` on the target, to calibrate the time model. By default
        this machine is measured; for another its rates are scaled by vector width and cores.
    frozen : str
        ``"int8"`` also looks for schemes whose frozen layers have eight bits, and takes one if that gains more
        (``result.frozen``). What eight bits cost is measured on the task's data, and taken off their gains: the head is
        trained behind them (:func:`pock_tvm.choosing.eight_bits.measured_drop`), once for each of its runs. Without
        runs (first-order scores) it is not in the gains.

    Raises
    ------
    ContributionError
        The contributions are of another model, or every run failed.
    PockError
        A budget is too small; the message names the smallest feasible one.
    """
    budgets = budgets_of(memory, seconds)
    require("what is searched", found, one_of("pock.Contributions, such as Contributions.load(path)", Contributions))
    require("frozen", frozen, Kind("'float32' or 'int8'", lambda value: value in FROZEN))
    structure, alternatives, time_model = prepare_search(found, target, profiles, progress, frozen)
    choices = best_alternative(alternatives, budgets)
    return _within_budgets(found.task, structure, choices, time_model, budgets, target, progress)


def budgets_of(memory: float | None, seconds: float | None) -> dict[str, float]:
    """Map each resource to its budget; infinite without one."""
    return {"memory": math.inf if memory is None else memory, "seconds": math.inf if seconds is None else seconds}


def prepare_search(
    contributions: Contributions,
    target: Any = None,
    profiles: Profiles = (),
    progress: Progress = lambda _label, _done, _count: None,
    frozen: str = FLOAT32,
) -> tuple[Structure, list[Choices], TimeModel]:
    """Build the search spaces, one for each number of micro-batches that a step can run in, fewest first, and with
    frozen layers in eight bits as many again.

    Also returns the structure of the model and the time model. Arguments and errors are those of :func:`search`.
    """
    model, structure = open_model(contributions.task)
    contributions.check_model(model)
    structure = structure.reading(contributions.rows)
    gains = expected_gains(contributions)
    if all(each.weight for each in gains):
        raise ContributionError("there is nothing to choose from: no run of the analysis succeeded")
    costs = contributions.costs if target is None else {}
    missing = [each for each in gains if each not in costs]
    costs |= planned_costs(contributions.task, missing, target, progress, contributions.rows)
    if profiles:
        time_model = TimeModel.fit(profiles, profiles, "profiles that were given, and fits their steps")
    else:
        time_model = scaled(calibrate(contributions.task, structure, gains, frozen), target)
    counts = batch_parts(model)
    if len(counts) > 1 and not _can_split(contributions.task, structure, counts[-1]):
        counts = counts[:1]
    cap = gain_cap(contributions)
    spaces = {FLOAT32: (costs, 0.0)}
    if frozen != FLOAT32:
        drop = measured_drop(contributions, structure, frozen, progress) or 0.0
        numbers = [each for each in gains if not each.weight]
        in_bits = planned_costs(contributions.task, numbers, target, progress, contributions.rows, frozen)
        spaces[frozen] = with_frozen(costs, in_bits), drop
    alternatives = [
        replace(choices_of(_less(gains, drop), own, structure, time_model, count), gain_cap=cap - drop, frozen=kind)
        for kind, (own, drop) in spaces.items()
        for count in counts
    ]
    return structure, alternatives, time_model


def _less(gains: Mapping[Candidate, float], drop: float) -> dict[Candidate, float]:
    """Take ``drop`` off the gains of numbers of biases: each scheme has exactly one of those."""
    return {each: gain if each.weight else gain - drop for each, gain in gains.items()}


def with_frozen(costs: Mapping[Candidate, Cost], in_bits: Mapping[Candidate, Cost]) -> dict[Candidate, Cost]:
    """Return the costs of candidates whose frozen layers have another type, from those of numbers of biases alone: what
    a weight adds does not depend on the type of what lies before it."""
    changed = dict(costs)
    for each, cost in costs.items():
        base = Candidate(each.biases)
        if base in in_bits and base in costs:
            changed[each] = cost.minus(costs[base].minus(in_bits[base]))
    return changed


def _can_split(task: Task, structure: Structure, micro_batches: int) -> bool:
    """Check whether a step can run in this number of micro-batches."""
    try:
        compile_task(task, scheme_of(structure, 0, {}), micro_batches=micro_batches, build=False)
    except BatchError:
        return False
    return True


def best_alternative(alternatives: Sequence[Choices], budgets: Mapping[str, float]) -> Choices:
    """Select the search space with the best choice within budgets; that of most micro-batches if all are infeasible."""
    chosen = best_of(alternatives, **budgets)
    wanted = chosen and (chosen.micro_batches, chosen.frozen)
    matching = (each for each in alternatives if (each.micro_batches, each.frozen) == wanted)
    return next(matching, alternatives[-1])


def choices_of(
    gains: Mapping[Candidate, float],
    costs: Mapping[Candidate, Cost],
    structure: Structure,
    time_model: TimeModel,
    micro_batches: int,
) -> Choices:
    """Build the search space of one number of micro-batches from expected gains and costs."""
    costs = {each: cost.in_micro_batches(micro_batches) for each, cost in costs.items()}
    numbers = sorted(each for each in gains if not each.weight)
    biases, memory, seconds = {}, 0.0, 0.0
    for each in numbers:  # cost is monotone in depth: never estimate less than a shallower scheme's plan
        memory, seconds = max(memory, costs[each].memory), max(seconds, time_model.seconds(costs[each]))
        biases[each.biases] = Option(gains[each], memory, seconds)
    options: dict[str, dict[float, Option]] = {}
    depths = {each.weight: depth_of(structure, each.weight) for each in gains if each.weight}
    for each in gains:
        deep_enough = [number for number in numbers if number.biases >= max(each.biases, depths.get(each.weight, 0))]
        if each.weight and deep_enough:
            extra = costs[each].minus(costs[deep_enough[0]])
            # A weight may add nothing to this scheme's peak but to a smaller scheme's: count at least what it keeps.
            size = max(extra.memory, extra.kept)
            # Negative differences come from other kernel choices or errors of the model: training more costs time.
            seconds = max(0.0, time_model.seconds(extra))
            options.setdefault(each.weight, {})[each.ratio] = Option(gains[each], size, seconds)
    return Choices(biases, {name: Weight(depths[name], by_ratio) for name, by_ratio in options.items()}, micro_batches)


def _within_budgets(
    task: Task,
    structure: Structure,
    choices: Choices,
    time_model: TimeModel,
    budgets: Mapping[str, float],
    target: Any,
    progress: Progress,
) -> SearchResult:
    """Solve the integer program, plan its choice, and correct the limits of the program by the plan, until they meet.

    The cost of a plan is close to the sum over its parts, but not equal. The first limit interpolates between the
    smallest and the largest choice, to where the plan would fill the budget. Then limits are bisected between the sums
    of feasible and infeasible choices.
    """
    planned: list[SearchResult] = []

    def plan(choice: Choice) -> SearchResult:
        result = next((each for each in planned if each.choice == choice), None)
        if result is None:
            progress("planning schemes", len(planned), MAX_PLANS)
            result = _plan(task, structure, choices, choice, time_model, target, budgets["memory"])
            planned.append(result)
        return result

    feasible = plan(_smallest(choices))
    if _exceeded(feasible, budgets):
        raise _too_small(feasible, budgets)
    current = plan(best(choices))  # type: ignore[arg-type] # without budgets there is always a choice
    lower = {name: _summed(feasible, name) for name in budgets}  # no choice below gains more than the feasible one
    upper = dict.fromkeys(budgets, math.inf)
    limits: dict[str, float] = {}
    while len(planned) < MAX_PLANS:
        exceeded = _exceeded(current, budgets)
        upper |= {name: min(upper[name], _summed(current, name)) for name in exceeded}
        if not exceeded:
            feasible = current if current.choice.gain > feasible.choice.gain else feasible
            lower |= limits
        bounded = [name for name, sum_ in upper.items() if not math.isinf(sum_)]
        if not bounded or any(STOP_RATIO * upper[name] < lower[name] for name in bounded):
            break
        limits = {
            name: _interpolated(feasible, current, name, budgets[name])
            if name in exceeded
            else (lower[name] + upper[name]) / 2
            for name in bounded
        }
        choice = best(choices, **limits)
        if choice is None:
            break
        current = plan(choice)
    return replace(feasible, plans=len(planned))


def _exceeded(result: SearchResult, budgets: Mapping[str, float]) -> list[str]:
    """List the resources whose budget a planned scheme exceeds."""
    return [name for name, budget in budgets.items() if _planned(result, name) > budget]


def _planned(result: SearchResult, resource: str) -> float:
    """Return a scheme's use of a resource as planned."""
    return float(result.cost.memory if resource == "memory" else result.seconds)


def _summed(result: SearchResult, resource: str) -> float:
    """Return a scheme's use of a resource as the sum over its parts."""
    return float(getattr(result.choice, resource))


def _interpolated(feasible: SearchResult, infeasible: SearchResult, resource: str, budget: float) -> float:
    """Interpolate the sum over parts at which the plan fills a budget, at least a tenth away from either end."""
    low, high = (_summed(each, resource) for each in (feasible, infeasible))
    planned_low, planned_high = (_planned(each, resource) for each in (feasible, infeasible))
    return low + min(max((budget - planned_low) / (planned_high - planned_low), 0.1), 0.9) * (high - low)


def _plan(
    task: Task,
    structure: Structure,
    choices: Choices,
    choice: Choice,
    time_model: TimeModel,
    target: Any,
    memory: float,
) -> SearchResult:
    """Plan the program of a choice."""
    scheme = scheme_of(structure, choice.biases, choice.weights)
    frozen = choices.frozen
    try:
        cost = _planned_cost(task, scheme, target, memory, frozen)
    except NothingFrozenError:  # everything is trained
        frozen = FLOAT32
        cost = _planned_cost(task, scheme, target, memory, frozen)
    return SearchResult(scheme, choice, cost, time_model.seconds(cost), choices, time_model, 1, frozen)


def _planned_cost(task: Task, scheme: Scheme, target: Any, memory: float, frozen: str) -> Cost:
    """Compute the cost of a scheme within a memory budget; its smallest memory if that is more."""
    budget = None if math.isinf(memory) else int(memory)
    try:
        return cost_of(compile_task(task, scheme, target=target, memory_budget=budget, frozen=frozen, build=False))
    except MemoryBudgetError as error:
        return Cost(error.smallest)


def _smallest(choices: Choices) -> Choice:
    """Return the choice of least memory: the head, or few biases, alone."""
    count = min(choices.biases, key=lambda count: choices.biases[count].memory)
    return total(choices, count, {})


def _too_small(smallest: SearchResult, budgets: Mapping[str, float]) -> PockError:
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
