"""Kernels read as batched matrix products, ``C[b, m, n] = sum_k A[b, m, k] * B[b, k, n]``, whatever their indices."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import Call, Range, TensorLoad
from tvm.s_tir.schedule import SBlockRV
from tvm.sym import Analyzer
from tvm.tirx.analysis import undefined_vars

from ...emit import INDEX, substituted
from ...loops import Unsuited, factors_of, is_reduction

SHORT = ("bfloat16", "float16")
"""Types of 16 bits."""
Env = Mapping[tirx.Var, tirx.Expr]
"""Values of variables."""


@dataclass(frozen=True, eq=False)
class Axis:
    """Loop of a product. The extent of a reduced one may depend on the batch."""

    var: tirx.Var
    extent: tirx.Expr | int


@dataclass(frozen=True)
class Contraction:
    """A product: four groups of axes, outermost first; its factors, and what stores a sum."""

    batch: tuple[Axis, ...]
    """Axes that both factors depend on."""
    rows: tuple[Axis, ...]
    """Axes that only the left factor depends on."""
    columns: tuple[Axis, ...]
    """Axes that only the right factor depends on."""
    reduced: tuple[Axis, ...]
    left: tirx.Expr
    right: tirx.Expr
    sums: tirx.Buffer
    """The buffer of sums that ``store`` reads, at one place."""
    store: tirx.BufferStore
    """Stores the result of one sum, over the axes' variables: the epilogue."""
    kept: tirx.Expr | None
    """Condition, over the axes' variables, on which a sum is stored. None: each is."""

    @property
    def dtype(self) -> str:
        """Type of the sums."""
        return str(self.sums.dtype)


def contraction_of(sch: s_tir.Schedule, block: SBlockRV, *, by_group: bool = True) -> Contraction:
    """Read a product and what is fused to it. Element-wise producers become part of the factors, consumers of the
    epilogue. ``by_group``: an axis of groups of channels is split into group and channel.

    Raises
    ------
    Unsuited
        The block is no product, or what is fused to it is not element-wise.
    """
    copy = isolate(sch, block)
    stmt = sch.get(block)
    spatial = [axis_of(each) for each in stmt.iter_vars if int(each.iter_type) == 0]
    reduced = [axis_of(each) for each in stmt.iter_vars if int(each.iter_type) == 2]
    left, right, exists = _factors(stmt)
    splits = Splits(spatial, reduced)
    if exists is not None:
        splits.by_phase(exists, spatial[1:3], [int(stride) for stride in stmt.annotations["strides"]])
    if by_group:
        splits.by_group(left, right)
    left, right = (splits.applied(factor) for factor in (left, right))
    batch: list[Axis] = []
    rows: list[Axis] = []
    columns: list[Axis] = []
    for axis in splits.spatial:
        in_left, in_right = uses(left, axis.var), uses(right, axis.var)
        if any(uses(each.extent, axis.var) for each in splits.reduced):
            in_left = in_right = True
        (batch if in_left and in_right else columns if in_right else rows).append(axis)
    store, kept = epilogue_of(sch, copy, [splits.values[axis.var] for axis in spatial])
    conditions = [*splits.conditions, *([] if kept is None else [kept])]
    return Contraction(
        tuple(batch), tuple(rows), tuple(columns), tuple(splits.reduced), left, right,
        stmt.writes[0].source, store, tirx.all(*conditions) if conditions else None,
    )  # fmt: skip


def epilogue_of(
    sch: s_tir.Schedule, copy: SBlockRV, place: Sequence[tirx.Expr]
) -> tuple[tirx.BufferStore, tirx.Expr | None]:
    """Return the store of a sum's result at a place along the sums' axes, and the condition on which there is one
    (None: always). ``copy``: see :func:`isolate`."""
    epilogue, realize = sch.get(copy), sch.get(sch.get_loops(copy)[-1]).body
    store = substituted(epilogue.body, dict(zip([each.var for each in epilogue.iter_vars], place, strict=True)))
    if isinstance(realize.predicate, tirx.IntImm):
        return store, None
    return store, substituted(realize.predicate, dict(zip(realize.iter_values, place, strict=True)))


def axis_of(iter_var: tirx.IterVar) -> Axis:
    """Return the axis of a block's variable."""
    if not isinstance(iter_var.dom.extent, tirx.IntImm):
        raise Unsuited("the extent of a loop is not constant")
    return Axis(iter_var.var, int(iter_var.dom.extent))


def isolate(sch: s_tir.Schedule, block: SBlockRV) -> SBlockRV:
    """Leave two blocks: a product or another reduction, and one that stores its results. Returns the latter.

    Raises
    ------
    Unsuited
        What is around the block is not element-wise.
    """

    def inline(producer: SBlockRV) -> None:
        if is_reduction(sch, producer):
            raise Unsuited("a sum comes before the product, or beside it")
        sch.compute_inline(producer)

    while producers := sch.get_producers(block):
        inline(producers[0])
    copy = sch.cache_write(block, 0, "local")
    name = sch.get(copy).name_hint
    while consumers := sch.get_consumers(copy):
        within = [each for each in consumers if sch.get_consumers(each)]
        if within:
            inline(within[0])
            continue
        if len(consumers) > 1:
            raise Unsuited("the product has several results")
        beside = [each for each in sch.get_producers(consumers[0]) if sch.get(each).name_hint != name]
        if beside:
            inline(beside[0])
            continue
        sch.reverse_compute_inline(consumers[0])
    if len(sch.get_child_blocks(sch.get_sblock("root"))) > 2:
        raise Unsuited("the kernel has other blocks")
    if not isinstance(sch.get(copy).body, tirx.BufferStore):
        raise Unsuited("the epilogue is not one store")
    return copy


def _factors(stmt: s_tir.SBlock) -> tuple[tirx.Expr, tirx.Expr, tirx.Expr | None]:
    """Return the factors of a sum of products, and the condition on which there is a term."""
    factors, start = factors_of(stmt), stmt.init
    if factors is None:
        raise Unsuited("not a sum of products")
    if not (isinstance(start, tirx.BufferStore) and isinstance(start.value, tirx.FloatImm) and start.value.value == 0):
        raise Unsuited("the sum does not start at 0")
    return factors


class Splits:
    """Axes of a product while they are split, and the values of the block's variables over them."""

    def __init__(self, spatial: Sequence[Axis], reduced: Sequence[Axis]) -> None:
        self.spatial = [axis for axis in spatial if axis.extent != 1]
        self.reduced = list(reduced)
        self.values: dict[tirx.Var, tirx.Expr] = {axis.var: axis.var for axis in reduced}
        for axis in spatial:
            self.values[axis.var] = axis.var if axis.extent != 1 else tirx.const(0, INDEX)
        self.conditions: list[tirx.Expr] = []

    def by_group(self, left: tirx.Expr, right: tirx.Expr) -> None:
        """Split the axes of which both factors ask the group (``o // size``)."""
        for axis in list(self.spatial):
            sizes = _divisors_of(left, axis.var) | _divisors_of(right, axis.var)
            if not (sizes and uses(left, axis.var) and uses(right, axis.var)):
                continue
            if len(sizes) > 1 or axis.extent % min(sizes):
                raise Unsuited("the groups are not equal parts of an axis")
            group, within = self._split(axis, min(sizes))
            self.values[axis.var] = group * min(sizes) + within

    def by_phase(self, exists: tirx.Expr, places: Sequence[Axis], strides: Sequence[int]) -> None:
        """Split the rows and columns of a strided data gradient (``places``) by phase: position modulo stride.

        All results of a phase sum the same taps, and no others. ``exists``: condition on which there is a term, a
        conjunction of one on row and tap (the first reduced axis), and one on column and tap (the second).
        """
        for number, (place, stride) in enumerate(zip(places, strides, strict=True)):
            if stride == 1:
                continue
            tap = self.reduced[number]
            outer, phase = self._split(place, stride)
            self.values[place.var] = outer * stride + phase
            if int(place.extent) % stride:
                self.conditions.append(self.values[place.var] < place.extent)
            (condition,) = (each for each in _conjuncts(exists) if uses(each, place.var))
            taps = [
                [k for k in range(int(tap.extent)) if _holds(condition, {place.var: outer * stride + at, tap.var: k})]
                for at in range(stride)
            ]
            first, step, count = _progression(taps, int(tap.extent), phase)
            index = tirx.Var(f"{tap.var.name}_of_phase", INDEX)
            self.values[tap.var] = first + index * step
            self.reduced[number] = Axis(index, count)

    def applied(self, factor: tirx.Expr) -> tirx.Expr:
        """Return a factor over the axes, simplified: one of groups does not depend on the channel in a group."""
        analyzer = Analyzer()
        for axis in self.spatial:
            analyzer.bind(axis.var, Range(0, axis.extent))
        return analyzer.simplify(substituted(factor, self.values))

    def _split(self, axis: Axis, size: int) -> tuple[tirx.Var, tirx.Var]:
        outer, inner = (tirx.Var(f"{axis.var.name}_{part}", INDEX) for part in ("outer", "inner"))
        if axis not in self.spatial:
            raise Unsuited("an axis of one element is split")
        at = self.spatial.index(axis)
        self.spatial[at : at + 1] = [Axis(outer, -(-int(axis.extent) // size)), Axis(inner, size)]
        return outer, inner


def _conjuncts(condition: tirx.Expr) -> list[tirx.Expr]:
    if isinstance(condition, tirx.And):
        return [*_conjuncts(condition.a), *_conjuncts(condition.b)]
    return [condition]


def _holds(condition: tirx.Expr, env: Env) -> bool:
    """Return whether a condition is true. It has to be the same for all values of the variables that are left."""
    found = Analyzer().simplify(substituted(condition, env))
    if not isinstance(found, tirx.IntImm):
        raise Unsuited("a condition that does not depend on the phase alone")
    return bool(found.value)


def _progression(taps: Sequence[Sequence[int]], extent: int, phase: tirx.Var) -> tuple[tirx.Expr, int, tirx.Expr]:
    """Return first tap, step and number of the taps of a phase, of ``extent`` taps in all.

    ``taps``: those of each phase. A convolution's are ``(phase + shift) % phases``, and every ``step``-th after it.
    """
    phases = len(taps)
    steps = {second - first for each in taps for first, second in zip(each, each[1:], strict=False)} or {phases}
    step = min(steps)
    for shift in range(phases):
        found = [list(range((at + shift) % phases, extent, step)) for at in range(phases)]
        if len(steps) == 1 and found == [list(each) for each in taps]:
            first = _rotated(phase, shift, phases)
            return first, step, tirx.floordiv(extent - 1 - first, step) + 1
    raise Unsuited("the taps of a phase are no arithmetic progression")


def _rotated(phase: tirx.Var, shift: int, phases: int) -> tirx.Expr:
    """Return ``(phase + shift) % phases``. As a remainder of a remainder, TVM 0.27 simplifies it to another number, or
    divides by 0."""
    if shift == 0:
        return phase
    return phase + shift - tirx.Select(phase + shift >= phases, tirx.const(phases, INDEX), tirx.const(0, INDEX))


def _divisors_of(expr: tirx.Expr, var: tirx.Var) -> set[int]:
    """Return the constants that a variable is divided by."""
    found: set[int] = set()

    def visit(node: tirx.FloorDiv | tirx.FloorMod) -> None:
        if node.a.same_as(var):
            found.add(int(node.b))

    tvm_ffi.structural_walk(expr, ((tirx.FloorDiv, tirx.FloorMod), visit))
    return found


def narrowed(contraction: Contraction) -> Contraction:
    """Return a product with the factors in 16 bits where they are of 16 bits, and widened to the sums' type."""
    return replace(contraction, left=narrow(contraction.left), right=narrow(contraction.right))


def narrow(factor: tirx.Expr) -> tirx.Expr:
    """Return what is widened, or the factor. Around it may be a selection, of 0 otherwise."""
    if isinstance(factor, tirx.Cast) and str(factor.value.ty.dtype) in SHORT:
        return factor.value
    if isinstance(factor, Call) and factor.op.name == "prim.if_then_else":
        condition, value, otherwise = factor.args
        if isinstance(otherwise, tirx.FloatImm) and otherwise.value == 0:
            value = narrow(value)
            return tirx.if_then_else(condition, value, tirx.const(0, str(value.ty.dtype)))
    return factor


def uses(expr: Any, var: tirx.Var) -> bool:
    """Return whether an expression depends on a variable."""
    return not isinstance(expr, int) and any(var.same_as(other) for other in undefined_vars(expr, []))


def extents_of(contraction: Contraction) -> tuple[int, int, int]:
    """Return the extents of the batch, the rows and the columns of a product."""
    groups = (contraction.batch, contraction.rows, contraction.columns)
    batch, rows, columns = (math.prod(int(axis.extent) for axis in axes) for axes in groups)
    return batch, rows, columns


def flat(axes: Iterable[Axis]) -> tirx.Expr | int:
    """Return the extent of axes together."""
    product: tirx.Expr | int = 1
    for axis in axes:
        product = product * axis.extent
    return product


def places(index: tirx.Expr, axes: Sequence[Axis]) -> dict[tirx.Var, tirx.Expr]:
    """Return the position along each axis of element ``index`` of axes together."""
    found = {}
    for axis in reversed(axes[1:]):
        extent = axis.extent if isinstance(axis.extent, int) else tirx.max(axis.extent, 1)  # a phase without taps
        found[axis.var] = tirx.floormod(index, extent)
        index = tirx.floordiv(index, extent)
    return found | ({axes[0].var: index} if axes else {})


def with_sum(value: tirx.Expr, sums: tirx.Buffer, total: tirx.Expr) -> tirx.Expr:
    """Return the value of an epilogue with ``total`` where it reads ``sums``."""
    return tvm_ffi.structural_map(value, (TensorLoad, lambda load: total if load.source.same_as(sums) else load))
