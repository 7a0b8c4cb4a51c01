"""Runs the start of the forward pass in slices of the batch, to lower peak memory."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tvm
from tvm import IRModule, relax

from ..analysis.batch_axis import BatchAxis, batch_axis_of
from ..errors import PassError
from ..ir import (
    CALLS,
    Constant,
    Expr,
    assemble,
    bindings_of,
    bytes_of,
    constant_vars,
    is_float,
    is_kept,
    op_name,
    operands,
    shape_of,
    substitute,
    update_function,
    used_vars,
)
from ..operators.aliases import join, part
from ..operators.record import Kind, kind_of

SAVED = 0.97
"""Largest peak after slicing, relative to the estimated unsliced peak. A smaller saving is not worth it."""
NEAR = 1.03
"""Tolerance relative to the lowest peak. Within it, fewer slices and earlier cuts are preferred."""
START = 64 * 2**10
"""Cost of starting a kernel, as bytes of memory traffic that take as long."""
DEARER = 1 / 16
"""Largest extra memory traffic (weights read again, kernel starts) relative to the unsliced pass."""
WRITING_KINDS = (Kind.PER_IMAGE, Kind.REDUCTION)
WRITING = frozenset({"pock.matmul", "pock.normalize", "pock.pack_bits", "pock.winograd_output"}) | {
    "pock.safe_softmax",
    "relax.nn.softmax",
    "relax.nn.log_softmax",
}
"""Operators that always become a kernel with a result of its own, by kind and by name."""
EPILOGUES = frozenset({"pock.requantize", "pock.requantize_sum", "pock.dequantize", "pock.dequantize_sums"})
"""Operators that are element-wise, beside those of that kind."""


@tvm.transform.module_pass(opt_level=0, name="SliceForward")
@dataclass(frozen=True)
class SliceForward:
    """Run operators from the inputs to a cut once for each slice of the batch, if that lowers the peak.

    In, out: dataflow functions whose first ``num_input`` (an attribute) parameters are the inputs. A sparse scheme has
    its peak in the forward pass: early activations are large and short-lived. Slices reuse the same memory one after
    the other. Values that the rest of the step reads are joined, each part written in its place
    (:mod:`~relay_passes.operators.aliases`). Cut and slice count minimise the peak within a limit on extra traffic:
    each slice reads the weights and starts the kernels again.

    ``steps`` are sliced first. The other ``functions`` share the arena, and are sliced only while that lowers its size.
    Values made only of ``frozen`` parameters are ignored: they are hoisted later. ``slices`` fixes the slice count of
    ``steps``, where it lowers the peak.
    """

    steps: Sequence[str]
    functions: Sequence[str]
    frozen: Collection[str] = ()
    slices: int | None = None

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        enough = 0.0
        for name in sorted(self.functions, key=lambda name: name not in self.steps):
            usage = _Usage(mod[name], self.frozen)
            is_step = name in self.steps
            cut = usage.best_cut(0.0 if is_step else enough, self.slices if is_step else None)
            if cut is not None:
                mod = update_function(mod, name, _sliced(mod[name], cut, usage.samples))
            enough = max(enough, usage.peak if cut is None else cut.peak)
        return mod


class Cut(NamedTuple):
    """Cut of a function: the values that run in slices."""

    slices: int
    last: int
    """Index of the last binding that may run in slices."""
    inside: Collection[relax.Var]
    """Values computed in slices."""
    joined: Sequence[relax.Var]
    """Sliced values that the rest reads, each written by a kernel."""
    again: Collection[relax.Var]
    """Values also recomputed after the slices: the rest reads them, and they may be views of joined values."""
    peak: float
    """Estimated peak in bytes."""


class _Tried(NamedTuple):
    """Candidate cut, with the estimated peaks in bytes of the slices (``own``) and of the rest."""

    slices: int
    last: int
    own: float
    rest: float

    @property
    def peak(self) -> float:
        return max(self.own, self.rest)


class _Usage:
    """Memory use of a function, estimated from its operators.

    An element-wise operator reuses the memory of an operand that has no later reader: the two are fused. Sums that one
    narrows are never stored.
    """

    def __init__(self, func: relax.Function, frozen: Collection[str]) -> None:
        self.bindings = bindings_of(func)
        self.constant = constant_vars(func, frozen)
        self.samples = samples = batch_axis_of(func)
        self.batch, self.inputs, self.batched = samples.batch, samples.inputs, samples.batched
        self.mixed = samples.mixed
        """Values that mix images. They run after all slices."""
        self._measure(set(used_vars(func.body.body)))

    def _measure(self, returned: Collection[relax.Var]) -> None:
        """Compute the memory of each variable, its live range in bindings, and the bytes in use at each binding."""
        self.readers: dict[relax.Var, list[int]] = {}
        for at, binding in enumerate(self.bindings):
            for var in used_vars(binding.value):
                self.readers.setdefault(var, []).append(at)
        for var in returned:
            self.readers.setdefault(var, []).append(len(self.bindings))
        self.unstored = self._unstored()
        self.memory: dict[relax.Var, int] = {}  # variable -> index of its memory
        self.sizes: list[int] = []
        self.spans: list[list[int]] = []
        for at, binding in enumerate(self.bindings):
            var, shared = binding.var, self._shared(at, binding)
            if shared is None:
                shared = len(self.sizes)
                is_call = isinstance(binding.value, relax.Call) and op_name(binding.value) not in CALLS
                is_new = is_call and var not in self.constant
                self.sizes.append(bytes_of(var) if is_new else 0)
                self.spans.append([at, at])
            elif _maps_elements(binding.value):
                self.sizes[shared] = min(self.sizes[shared], bytes_of(var))
            self.memory[var] = shared
            self.spans[shared][1] = max([self.spans[shared][1], *self.readers.get(var, [])])
        live = np.zeros(len(self.bindings) + 2)
        for size, (first, last) in zip(self.sizes, self.spans, strict=True):
            live[first] += size
            live[last + 1] -= size
        self.live = np.cumsum(live)[: len(self.bindings)]
        self.peak = float(self.live.max(initial=0))

    def _unstored(self) -> set[relax.Var]:
        """Return the results of products that an element-wise operator alone reads, and narrows."""
        found = set()
        for binding in self.bindings:
            readers = self.readers.get(binding.var, [])
            if kind_of(binding.value) is Kind.PER_IMAGE and len(readers) == 1 and readers[0] < len(self.bindings):
                reader = self.bindings[readers[0]]
                is_narrower = _maps_elements(reader.value) and bytes_of(reader.var) < bytes_of(binding.var)
                found |= {binding.var} if is_narrower else set()
        return found

    def _shared(self, at: int, binding: relax.VarBinding) -> int | None:
        """Return the operand's memory that a binding's result reuses; None if it needs its own."""
        value = binding.value
        operands = [var for var in used_vars(value) if var in self.memory]
        if kind_of(value) is Kind.RESHAPE or isinstance(value, relax.TupleGetItem | relax.Var):
            return self.memory[operands[0]] if operands else None
        if not _maps_elements(value):
            return None
        for var in operands:
            is_last = self.spans[self.memory[var]][1] == at
            if is_last and (bytes_of(var) == bytes_of(binding.var) or var in self.unstored):
                return self.memory[var]
        return None

    def best_cut(self, enough: float, slices: int | None = None) -> Cut | None:
        """Choose the fewest slices whose peak is within ``NEAR`` of the lowest, or below ``enough``; or of cuts into
        ``slices``, if that is given. Of their cuts, choose the earliest whose slice peak is within ``NEAR`` of the
        lowest: the rest's estimate may be too high. None if slicing does not help."""
        target = max(enough, SAVED * self.peak)
        found = [cut for cut in self._cuts() if cut.peak <= target and slices in (None, cut.slices)]
        if self.peak <= enough or not found:
            return None
        least = max(enough, NEAR * min(cut.peak for cut in found))
        found = [cut for cut in found if cut.peak <= least]
        fewest = min(cut.slices for cut in found)
        found = [cut for cut in found if cut.slices == fewest]
        lowest = max(enough, NEAR * min(cut.own for cut in found))
        chosen = next(cut for cut in found if cut.own <= lowest)
        return Cut(chosen.slices, chosen.last, *self._inside(chosen.last), chosen.peak)

    def _cuts(self) -> list[_Tried]:
        """List all cuts whose extra traffic is within ``DEARER``."""
        counts = [count for count in range(2, self.batch + 1) if self.batch % count == 0]
        behind = np.append(np.maximum.accumulate(self.live[::-1])[::-1], 0.0)
        ends: dict[int, list[int]] = {}
        for number, (_, last) in enumerate(self.spans):
            ends.setdefault(last, []).append(number)
        inner = np.zeros(len(self.bindings))  # bytes in use of values that die before the cut
        crossing = weights = moved = least = 0.0  # least: peak of mixed values, which run after the slices
        calls, found, again = 0, [], self._made_again()
        entered: set[int] = set()
        read: set[relax.Var] = set()
        for at, binding in enumerate(self.bindings):
            if binding.var in self.mixed:
                least = max(least, float(self.live[at]))
            if binding.var not in self.batched:
                continue
            number = self.memory[binding.var]
            if number not in entered:
                entered.add(number)
                crossing += self.sizes[number]
            for var in used_vars(binding.value):
                moved += bytes_of(var) if var in self.batched and var not in self.unstored else 0
                if var not in self.batched and var not in read:
                    read.add(var)
                    weights += bytes_of(var)
            moved += bytes_of(binding.var) if binding.var not in self.unstored else 0
            calls += kind_of(binding.value) is not Kind.RESHAPE and not _maps_elements(binding.value)
            for number in ends.get(at, []):
                if number in entered:
                    crossing -= self.sizes[number]
                    inner[self.spans[number][0] : at + 1] += self.sizes[number]
            most, rest = float(inner.max()), max(least, float(behind[at + 1])) + float(again[at])
            if self._splits_narrowing(at):
                continue
            for count in counts:
                if (count - 1) * (weights + calls * START) <= DEARER * moved:
                    found.append(_Tried(count, at, crossing + most / count, rest))
        return found

    def _splits_narrowing(self, at: int) -> bool:
        """Return whether a cut after a binding would store a product that is narrowed behind it."""
        var = self.bindings[at].var
        return var in self.unstored and self.readers[var][0] > at

    def _made_again(self) -> np.ndarray:
        """Return, for a cut after each binding, the extra bytes to join because values that the rest reads are
        recomputed after the slices."""
        change = np.zeros(len(self.bindings) + 1)
        needs: dict[relax.Var, int] = {}  # recomputed value -> bytes of the values that it reads
        for at, binding in enumerate(self.bindings):
            if binding.var not in self.batched or _is_made(binding):
                continue
            read = [var for var in used_vars(binding.value) if var in self.batched and var not in self.inputs]
            needs[binding.var] = sum(needs.get(var, bytes_of(var)) for var in read)
            readers = self.readers.get(binding.var, [])
            is_inside = all(
                reader < len(self.bindings) and self.bindings[reader].var in self.batched for reader in readers
            )
            change[at] += needs[binding.var]
            change[max(readers, default=at) if is_inside else -1] -= needs[binding.var]
        return np.cumsum(change)

    def _inside(self, last: int) -> tuple[set[relax.Var], list[relax.Var], set[relax.Var]]:
        """Compute the fields ``inside``, ``joined`` and ``again`` of a cut."""
        before = [binding for binding in self.bindings[: last + 1] if binding.var in self.batched]
        inside, joined, again = {binding.var for binding in before}, [], set()
        for binding in reversed(before):
            var = binding.var
            readers = [self.bindings[at].var if at < len(self.bindings) else None for at in self.readers.get(var, [])]
            if all(reader in inside and reader not in again for reader in readers):
                continue
            if _is_made(binding) and self.batched[var].axis == 0:
                joined.append(var)
                continue
            again.add(var)
            if not any(reader in inside for reader in readers):
                inside.discard(var)
        return inside, joined[::-1], again


def _maps_elements(value: Expr) -> bool:
    """Return whether an operator is element-wise: it is fused into another kernel."""
    return kind_of(value) is Kind.ELEMENTWISE or op_name(value) in EPILOGUES


def _is_made(binding: relax.VarBinding) -> bool:
    """Return whether a kernel is certain to write a result. TVM makes views of mere moves and copies (``x * 1``)."""
    name = op_name(binding.value)
    if name in WRITING or kind_of(binding.value) in WRITING_KINDS:
        return True
    is_copy = name in ("relax.astype", "relax.grad.no_grad", "relax.nn.dropout")
    has_constant = any(isinstance(arg, Constant) for _, _, arg in operands(binding.value))
    return kind_of(binding.value) is Kind.ELEMENTWISE and is_float(binding.var) and not (is_copy or has_constant)


def _sliced(func: relax.Function, cut: Cut, samples: BatchAxis) -> relax.Function:
    """Build the function with the values inside a cut computed slice by slice."""
    bindings = bindings_of(func)
    before, behind = bindings[: cut.last + 1], bindings[cut.last + 1 :]
    builder = relax.BlockBuilder()
    builder.begin_scope(func.params)
    builder._begin_dataflow_block()
    env: dict[relax.Var, Expr] = {}

    def emit(binding: relax.VarBinding) -> None:
        value = substitute(binding.value, env)
        env[binding.var] = value if isinstance(value, relax.Tuple) else builder.emit(value, binding.var.name)

    sliced = [binding for binding in before if binding.var in cut.inside]
    mixed: list[relax.VarBinding] = []  # values that depend on joined values come after the join
    needs = set(cut.inside)
    for binding in before:
        if binding.var in cut.inside and binding.var not in cut.again:
            continue
        if any(var in needs for var in used_vars(binding.value)):
            mixed.append(binding)
            needs.add(binding.var)
        else:
            emit(binding)
            needs.discard(binding.var)

    def emit_part(binding: relax.VarBinding, own: Mapping[relax.Var, Expr]) -> Expr:
        here = ChainMap({each: own[each] for each in samples.needs[binding.var]}, env)
        call = samples.on_part(binding.var, substitute(binding.value, here), cut.slices)
        return builder.emit(call, binding.var.name)

    needed = {each for binding in sliced for each in samples.needs[binding.var]}
    for binding in reversed(before):
        if binding.var in samples.repeated and binding.var in needed:
            needed.update(samples.needs[binding.var])
    repeated: dict[relax.Var, Expr] = {}  # values that are the same in each slice
    for binding in before:
        if binding.var in samples.repeated and binding.var in needed:
            repeated[binding.var] = emit_part(binding, repeated)
    parts: dict[relax.Var, list[Expr]] = {var: [] for var in cut.joined}
    inputs = [x for x in func.params if x in samples.inputs]
    for index in range(cut.slices):
        own = repeated | {x: builder.emit(part(x, index=index, count=cut.slices), x.name) for x in inputs}
        for binding in sliced:
            own[binding.var] = emit_part(binding, own)
        for var, made in parts.items():
            made.append(own[var])
    for var, made in parts.items():
        env[var] = builder.emit(join(relax.Tuple(made)), var.name)
        if shape_of(env[var]) != shape_of(var):
            raise PassError(f"parts of '{var.name}' came to the shape {shape_of(env[var])}, not {shape_of(var)}")
    for binding in [*mixed, *behind]:
        emit(binding)
    body = builder.normalize(substitute(func.body.body, env))
    emitted = list(builder._end_block().bindings)
    builder.end_scope()
    kept = [env[binding.var] for binding in bindings if is_kept(binding.var) and binding.var in env]
    return assemble(func.params, emitted, body, func.attrs, [var for var in kept if isinstance(var, relax.Var)])
