"""Trades time for memory: drops temporaries and rematerialises them at their next use."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import tvm
from tvm import IRModule, relax

from ..analysis.aliasing import output_type
from ..analysis.live_ranges import Liveness
from ..analysis.verify import written_by
from ..errors import PassError
from ..ir import CALLS, bindings_of, op_name, rewrite, substitute, type_bytes, update_function, used_vars

LONGEST_CHAIN = 12
"""Largest number of kernels rerun for one value."""
TRIED = 12
"""Candidates evaluated exactly in each round."""


@tvm.transform.module_pass(opt_level=0, name="Recompute")
@dataclass(frozen=True)
class Recompute:
    """Rematerialise values until at most ``budget`` bytes are in use at any step.

    In, out: a dataflow function of ``call_tir`` in execution order. A kernel may rerun where its operands still exist
    or can be rematerialised too, and no update has changed a parameter that it reads. Greedy: each round picks the
    value with the largest reduction of the excess over the budget per second recomputed. ``costs`` gives the seconds of
    each kernel. (As in Kirisame et al., Dynamic Tensor Rematerialization, 2021, but at compile time.)

    Raises
    ------
    PassError
        The budget cannot be met.
    """

    budget: int
    costs: Mapping[str, float]
    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        found = recomputed(mod[self.function], self.budget, self.costs)
        if found.peak > self.budget:
            raise PassError(f"recomputation brings '{self.function}' down to {found.peak} bytes, not to {self.budget}")
        return update_function(mod, self.function, found.function)


class Recomputed(NamedTuple):
    """Function after rematerialisation."""

    function: relax.Function
    peak: int
    """Peak of bytes in use at a step."""
    seconds: float
    """Estimated time, summed over its kernels."""


def recomputed(func: relax.Function, budget: int, costs: Mapping[str, float], seconds: float = math.inf) -> Recomputed:
    """Bring a function's peak as near to ``budget`` bytes as at most ``seconds`` of recomputation can."""
    calls = _Calls.of(func, costs)
    order = _fit(calls, budget, seconds)
    peak = max(_profile(order, calls.sizes)[0], default=0)
    rebuilt = _rebuilt(func, order) if len(order) > len(calls.steps) else func
    return Recomputed(rebuilt, peak, sum(step.cost for step in order))


@dataclass(frozen=True)
class _Step:
    """Call of a kernel, with the values that it reads and writes as indices into :class:`_Calls`."""

    binding: relax.VarBinding
    reads: tuple[int, ...]
    writes: int | None
    """None if it only updates parameters or fills parts of larger values."""
    fills: tuple[int, ...]
    """Values of which it writes a part."""
    params: frozenset[relax.Var]
    changes: frozenset[relax.Var]
    """Parameters that it updates in place."""
    cost: float
    scratch: int
    """Bytes in use during this call alone."""


@dataclass(frozen=True)
class _Calls:
    """Calls of a function, and the values passed between them. Values are integers, for cheap comparison."""

    steps: list[_Step]
    sizes: list[int]
    """Bytes of each value; 0 for memory that the caller keeps."""

    @classmethod
    def of(cls, func: relax.Function, costs: Mapping[str, float]) -> _Calls:
        liveness = Liveness(func)
        aliasing = liveness.aliasing
        numbers = {var: number for number, var in enumerate(dict.fromkeys(var for var, _ in liveness.span))}
        params = set(func.params)
        steps = []
        for position, binding in enumerate(bindings_of(func)):
            value = binding.value
            if op_name(value) not in CALLS:
                continue
            read = used_vars(value)
            changes = frozenset(written_by(value))
            roots = tuple(dict.fromkeys(numbers[var] for arg in read for var, _ in aliasing.buffers(arg)))
            touched = frozenset(aliasing.origin(arg) for arg in read if not aliasing.buffers(arg)) & params
            cost = costs.get(value.args[0].name_hint, 0.0)
            joined = [
                aliasing.inside[output][0][0] for output in aliasing.outputs(binding) if output in aliasing.inside
            ]
            fills = tuple(numbers[var] for var in joined)
            scratch = liveness.scratch.get(position, 0)
            steps.append(_Step(binding, roots, numbers.get(binding.var), fills, touched, changes, cost, scratch))
        sizes = dict.fromkeys(numbers, 0)
        for var, index in liveness.temporaries:
            sizes[var] += type_bytes(output_type(var, index))
        return cls(steps, list(sizes.values()))


Interval = tuple[int, int, int]
"""Live range of one copy of a value: the value, the step that writes it, the last step that reads it."""


def _profile(order: Sequence[_Step], sizes: Sequence[int]) -> tuple[list[int], list[Interval]]:
    """Return the bytes in use at each step, and the live ranges: one for each time a value is written."""
    current = [-1] * len(sizes)  # index of the live range of each value's latest copy
    values: list[int] = []
    firsts: list[int] = []
    lasts: list[int] = []
    for position, step in enumerate(order):
        for value in step.reads:
            lasts[current[value]] = position
        for value in step.fills:
            if current[value] >= 0:
                lasts[current[value]] = position
        written = [value for value in step.fills if current[value] < 0]
        for value in written if step.writes is None else [*written, step.writes]:
            current[value] = len(values)
            values.append(value)
            firsts.append(position)
            lasts.append(position)
    change = [0] * (len(order) + 1)
    for value, first, last in zip(values, firsts, lasts, strict=True):
        change[first] += sizes[value]
        change[last + 1] -= sizes[value]
    in_use = [size + step.scratch for size, step in zip(itertools.accumulate(change[:-1]), order, strict=True)]
    return in_use, list(zip(values, firsts, lasts, strict=True))


def _excess(live: Sequence[int], budget: int) -> int:
    return sum(amount - budget for amount in live if amount > budget)


def _fit(calls: _Calls, budget: int, seconds: float) -> list[_Step]:
    """Find an order with recomputations whose peak is as near to the budget as the search gets within ``seconds``."""
    order = list(calls.steps)
    makers = {step.writes: step for step in order if step.writes is not None}
    while True:
        live, intervals = _profile(order, calls.sizes)
        excess = _excess(live, budget)
        if not excess:
            return order
        peak = live.index(max(live))
        best, best_rate, best_cost = None, 0.0, 0.0
        for again, use in _candidates(order, intervals, makers, calls.sizes, peak)[:TRIED]:
            changed = [*order[:use], *again, *order[use:]]
            gain = excess - _excess(_profile(changed, calls.sizes)[0], budget)
            cost = sum(step.cost for step in again)
            if gain > best_rate * (1e-6 + cost) and cost <= seconds:
                best, best_rate, best_cost = changed, gain / (1e-6 + cost), cost
        if best is None:
            return order
        order, seconds = best, seconds - best_cost


def _candidates(
    order: Sequence[_Step],
    intervals: Sequence[Interval],
    makers: Mapping[int, _Step],
    sizes: Sequence[int],
    peak: int,
) -> list[tuple[list[_Step], int]]:
    """List the values that could be dropped during the step ``peak``: the steps that recompute each and the position of
    its next use, by bytes per second recomputed, largest first."""
    found = []
    spans: dict[int, list[tuple[int, int]]] = {}
    for value, first, last in intervals:
        spans.setdefault(value, []).append((first, last))
    written = {param: position for position, step in enumerate(order) for param in step.changes}
    next_read: dict[int, int] = {}
    for position in range(len(order) - 1, peak - 1, -1):
        next_read.update(dict.fromkeys(order[position].reads, position))
    for value in [value for value, first, last in intervals if first < peak < last and sizes[value]]:
        use = next_read[value]
        if use == peak:
            continue
        again = _again(value, lambda other: any(first < use <= last for first, last in spans[other]), makers)  # noqa: B023
        if again and all(written.get(param, len(order)) >= use for step in again for param in step.params):
            found.append((sizes[value] / (1e-6 + sum(step.cost for step in again)), again, use))
    found.sort(key=lambda candidate: -candidate[0])
    return [(again, use) for _, again, use in found]


def _again(value: int, is_there: Callable[[int], bool], makers: Mapping[int, _Step]) -> list[_Step] | None:
    """Return the steps that recompute a value from values still in use, in order; None if there are more than
    ``LONGEST_CHAIN``, or it cannot be recomputed."""
    steps: list[_Step] = []
    waiting = [value]  # stack: each is computed for the one before it
    while waiting:
        maker = makers.get(waiting[-1])
        if maker is None or maker.changes or isinstance(maker.binding.var.ty, relax.TupleType):
            return None  # written part by part, or as one output of several
        if len(steps) + len(waiting) > LONGEST_CHAIN:
            return None
        made = {step.writes for step in steps}
        missing = next(
            (read for read in maker.reads if read not in made and (read == value or not is_there(read))), None
        )
        if missing is None:
            steps.append(maker)
            waiting.pop()
        else:
            waiting.append(missing)
    return steps


def _rebuilt(func: relax.Function, order: Sequence[_Step]) -> relax.Function:
    """Rebuild the function with its calls in this order. A step that occurs twice runs twice."""
    views = {binding.var: binding.value for binding in bindings_of(func) if op_name(binding.value) not in CALLS}
    bindings: list[relax.VarBinding] = []
    newest: dict[relax.Var, relax.Var] = {}
    made: dict[tuple[relax.Var, relax.Var | None], relax.Var] = {}
    viewed: set[relax.Var] = set()

    def current(var: relax.Var) -> relax.Var:
        """Return the latest copy of a variable. A view is rebuilt on the latest copy of its operand."""
        latest: dict[relax.Var, relax.Var] = {}
        waiting = [var]
        while waiting:
            at = waiting[-1]
            value = views.get(at)
            read = used_vars(value) if value is not None else []
            missing = [other for other in read if other not in latest]
            waiting += reversed(missing)
            if missing:
                continue
            waiting.pop()
            if value is None:
                latest[at] = newest.get(at, at)
                continue
            key = (at, latest[read[0]] if read else None)
            if key not in made:
                made[key] = at if at not in viewed else type(at)(at.name, at.ty)
                viewed.add(at)
                bindings.append(
                    relax.VarBinding(made[key], substitute(value, {other: latest[other] for other in read}))
                )
            latest[at] = made[key]
        return latest[var]

    for step in order:
        value = step.binding.value
        new = substitute(value, {var: current(var) for var in used_vars(value)})
        first = step.binding.var
        var = first if first not in newest else relax.DataflowVar(f"{first.name}_again", first.ty)
        newest[first] = var
        bindings.append(relax.VarBinding(var, new))
    for var in used_vars(func.body.body) + [func.body.body] * isinstance(func.body.body, relax.Var):
        current(var)
    body = relax.SeqExpr([relax.DataflowBlock(bindings)], func.body.body)
    return rewrite(relax.Function(func.params, body, func.ret_ty, func.is_pure, func.attrs))
