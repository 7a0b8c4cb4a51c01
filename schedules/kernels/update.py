"""In-place optimizer updates.

Each builder makes a PrimFunc for one parameter. If only slices along ``axis`` are trained, ``channels`` holds their
positions; gradient and states have the shape of this piece. If a parameter is updated part by part, the gradient has
the shape of one part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import IRModule, s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from . import OPAQUE, comes_scheduled


@dataclass(frozen=True)
class Layout:
    """A parameter and its trained piece."""

    shape: tuple[int, ...]
    dtype: str
    axis: int | None = None
    count: int = 0
    part: tuple[int, int] | None = None
    """Half-open range of rows that one of several updates covers."""

    @property
    def piece(self) -> tuple[int, ...]:
        """Shape of the trained piece, and of the states."""
        if self.axis is None:
            return self.shape
        return (*self.shape[: self.axis], self.count, *self.shape[self.axis + 1 :])

    @property
    def updated(self) -> tuple[int, ...]:
        """Shape that one update covers: that of the gradient."""
        return self.piece if self.part is None else (self.part[1] - self.part[0], *self.piece[1:])

    def shape_of(self, operand: str) -> tuple[int, ...]:
        """Return the shape of the weight, its gradient, or a state."""
        return {"weight": self.shape, "gradient": self.updated}.get(operand, self.piece)


UPDATE = "pock.update"
"""Schedule rule of an update's block."""
READ = ("gradient", "value")
"""Operands that an update does not write."""

Body = Callable[[dict[str, Any]], dict[str, tirx.Expr]]


def sgd(
    layout: Layout,
    *,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    vectors: Mapping[str, int],
) -> tirx.PrimFunc:
    """Build the update of ``torch.optim.SGD``.

    ``g += decay w; m = momentum m + share g; w -= lr (nesterov ? g + momentum m : m)``. Operands: gradient
    [, momentum_buffer]. ``rates``: [lr], or with dampening [lr, share], where share is 1 in the first update and
    ``1 - dampening`` afterwards. ``vectors``: see :func:`elementwise_update`.
    """
    const = _constants(layout)

    def body(v: dict[str, Any]) -> dict[str, tirx.Expr]:
        g = _decayed(v, const, weight_decay)
        step = {}
        if momentum:
            added = g * v["rates"][1] if dampening else g
            buffer = T.bind(v["momentum_buffer"] * const(momentum) + added)
            step["momentum_buffer"] = buffer
            g = g + buffer * const(momentum) if nesterov else buffer
        return step | {"weight": v["weight"] - v["rates"][0] * g}

    operands = ["gradient", "momentum_buffer"] if momentum else ["gradient"]
    return elementwise_update("sgd", layout, operands, vectors, body)


def adam(
    layout: Layout,
    *,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    decoupled: bool,
    vectors: Mapping[str, int],
) -> tirx.PrimFunc:
    """Build the update of ``torch.optim.Adam``.

    ``m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; w -= step m / (sqrt(v) c + eps)``. ``decoupled``: decay shrinks
    the weight instead of adding to the gradient (AdamW). Operands: gradient, exp_avg, exp_avg_sq. ``rates``:
    [lr, step = lr / (1 - b1^t), c = 1 / sqrt(1 - b2^t)].
    """
    const = _constants(layout)

    def body(v: dict[str, Any]) -> dict[str, tirx.Expr]:
        g = _decayed(v, const, 0 if decoupled else weight_decay)
        weight = v["weight"]
        if decoupled and weight_decay:
            weight = weight * (const(1) - v["rates"][0] * const(weight_decay))
        mean = T.bind(v["exp_avg"] * const(beta1) + g * const(1 - beta1))
        square = T.bind(v["exp_avg_sq"] * const(beta2) + g * g * const(1 - beta2))
        denominator = tirx.sqrt(square) * v["rates"][2] + const(epsilon)
        return {
            "exp_avg": mean,
            "exp_avg_sq": square,
            "weight": weight - v["rates"][1] * mean / denominator,
        }

    return elementwise_update("adam", layout, ["gradient", "exp_avg", "exp_avg_sq"], vectors, body)


def assign(layout: Layout, *, accumulate: bool) -> tirx.PrimFunc:
    """Build ``w = value``, or ``w += value``: a running statistic, or gradient accumulation."""
    return elementwise_update(
        "accumulate" if accumulate else "assign",
        layout,
        ["value"],
        {},
        lambda v: {"weight": v["weight"] + v["value"] if accumulate else v["value"]},
    )


def clear(layout: Layout) -> tirx.PrimFunc:
    """Build ``w = 0``: reset an accumulated gradient."""
    return elementwise_update("clear", layout, [], {}, lambda _v: {"weight": tirx.const(0, layout.dtype)})


def _constants(layout: Layout) -> Callable[[float], tirx.Expr]:
    return lambda value: tirx.const(value, layout.dtype)


def _decayed(v: dict[str, Any], const: Callable[[float], tirx.Expr], weight_decay: float) -> tirx.Expr:
    """Return the gradient, multiplied by clip factor and scale, plus weight decay."""
    g = v["gradient"]
    if "clip" in v:
        g = g * v["clip"][0]
    if "scale" in v:
        g = g * v["scale"]
    return g + v["weight"] * const(weight_decay) if weight_decay else g


def gradient_of(func: tirx.PrimFunc) -> int | None:
    """Return which parameter of an update is the gradient, or the value that is assigned; None for other kernels."""
    if comes_scheduled(func) or UPDATE not in _rules(func):
        return None
    found = [index for index, param in enumerate(func.params) if param.name in READ]
    return found[0] if found else None


def _rules(func: tirx.PrimFunc) -> list[str]:
    sch = s_tir.Schedule(IRModule({"main": func}))
    blocks = map(sch.get, sch.get_child_blocks(sch.get_sblock("root")))
    return [block.annotations.get("schedule_rule") for block in blocks]


def elementwise_update(
    name: str, layout: Layout, operands: Sequence[str], vectors: Mapping[str, int], body: Body
) -> tirx.PrimFunc:
    """Build a PrimFunc that updates ``weight`` and some of ``operands`` element by element.

    Parameters, in order: ``weight``; ``operands``, shaped like the piece (the gradient: like the part); ``vectors``,
    float, of the given lengths; ``channels``, int32 [count], for a piece. ``body`` maps the values at one element to
    new ones, the weight's last: they are written in this order, and what a later one needs of an earlier one is bound.
    It gets whole vectors, except ``scale``: the element of the last axis.

    One block over contiguous rows, of which there is one unless the layout has more. It writes a second view of what it
    reads: TVM's schedule primitives refuse blocks that write the buffers they read. An element depends on no other.
    """
    rows, per_row, inner = _rows(layout, by_channel="scale" in vectors)
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_name(name)
        # Opaque: FuseTIR cannot fuse calls that write two operands in place.
        T.func_attr({"tirx.noalias": True, "op_pattern": OPAQUE})
        params = {
            operand: T.arg(operand, T.Buffer(_int64(layout.shape_of(operand)), layout.dtype))
            for operand in ("weight", *operands)
        }
        whole = {vector: T.arg(vector, T.Buffer(_int64([length]), layout.dtype)) for vector, length in vectors.items()}
        channels = T.arg("channels", T.Buffer(_int64([layout.count]), "int32")) if layout.axis is not None else None

        def view(operand: str) -> tirx.Buffer:
            return T.decl_buffer((math.prod(layout.shape_of(operand)),), layout.dtype, data=params[operand].data)

        old = {operand: view(operand) for operand in params}
        new = {operand: view(operand) for operand in params if operand not in READ}
        before = layout.part[0] * math.prod(layout.piece[1:]) if layout.part is not None else 0
        extents = _int64([rows, inner])
        with T.grid(*extents) as at, T.sblock(name):
            row, column = (T.axis.spatial(extent, index) for extent, index in zip(extents, at, strict=True))
            # Elements lie side by side in memory in groups of so many, each at a multiple of that.
            T.sblock_attr({"schedule_rule": UPDATE, "adjacent": math.gcd(inner, before)})
            own = row * inner + column
            place = weight_place = own + before if before else own
            if channels is not None and layout.axis is not None:
                outer, index = tirx.indexdiv(row, per_row), tirx.indexmod(row, per_row)
                weight_place = (outer * layout.shape[layout.axis] + channels[index]) * inner + column
            places = dict.fromkeys(params, place) | {"weight": weight_place, "gradient": own}
            values: dict[str, Any] = {operand: buffer[places[operand]] for operand, buffer in old.items()} | whole
            if "scale" in whole:
                values["scale"] = whole["scale"][column]
            for operand, value in body(values).items():
                T.buffer_store(new[operand], value, [places[operand]])
    return builder.get()


def _rows(layout: Layout, by_channel: bool) -> tuple[int, int, int]:
    """Return the update as contiguous rows: their number, their number per index before ``axis``, and their length.

    ``by_channel``: a row is the last axis.
    """
    if layout.axis is not None:
        return math.prod(layout.piece[: layout.axis + 1]), layout.count, math.prod(layout.piece[layout.axis + 1 :])
    size = math.prod(layout.updated)
    inner = layout.shape[-1] if by_channel else size
    return size // inner, 1, inner


def _int64(shape: Sequence[int]) -> list[tirx.IntImm]:
    """Return int64 extents, as in Relax's shapes."""
    return [tirx.IntImm("int64", extent) for extent in shape]
