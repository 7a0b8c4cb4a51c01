"""What an optimizer does to a parameter, in place.

Each builder makes a PrimFunc over one parameter. Where only a piece of it is trained, ``channels`` gives the position
of each trained slice along ``axis``, and gradient and states have the shape of the piece. Where a parameter is updated
part by part, the gradient has the shape of the part alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from . import OPAQUE, SMALL


@dataclass(frozen=True)
class Layout:
    """A parameter and its trained piece."""

    shape: tuple[int, ...]
    dtype: str
    axis: int | None = None
    count: int = 0
    part: tuple[int, int] | None = None
    """The rows, from the first to that before the last, that one of several updates is of."""

    @property
    def piece(self) -> tuple[int, ...]:
        """The shape of the trained piece: of the states."""
        if self.axis is None:
            return self.shape
        return (*self.shape[: self.axis], self.count, *self.shape[self.axis + 1 :])

    @property
    def updated(self) -> tuple[int, ...]:
        """The shape of what one update is of: of the gradient."""
        return self.piece if self.part is None else (self.part[1] - self.part[0], *self.piece[1:])

    def shape_of(self, operand: str) -> tuple[int, ...]:
        """The shape of the weight, its gradient, or a state."""
        return {"weight": self.shape, "gradient": self.updated}.get(operand, self.piece)


LANES = 16  # elements of one vector operation; LLVM splits them where the target's vectors are shorter

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
    """``g += decay w; m = momentum m + share g; w -= lr (nesterov ? g + momentum m : m)``, as ``torch.optim.SGD``.

    Operands: gradient [, momentum_buffer]; ``rates`` is [lr], and with dampening [lr, share]: 1 in the first update and
    ``1 - dampening`` in all others. For ``vectors`` see :func:`elementwise_update`.
    """
    const = _constants(layout)

    def body(v: dict[str, Any]) -> dict[str, tirx.Expr]:
        g = _decayed(v, const, weight_decay)
        step = {}
        if momentum:
            added = g * v["rates"][1] if dampening else g
            step["momentum_buffer"] = v["momentum_buffer"] * const(momentum) + added
            g = g + v["momentum_buffer"] * const(momentum) if nesterov else v["momentum_buffer"]
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
    """``m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; w -= step m / (sqrt(v) c + eps)``, as ``torch.optim.Adam``.

    With ``decoupled`` the decay shrinks the weight instead of adding to the gradient: AdamW. Operands: gradient,
    exp_avg, exp_avg_sq; ``rates`` is [lr, step = lr / (1 - b1^t), c = 1 / sqrt(1 - b2^t)].
    """
    const = _constants(layout)

    def body(v: dict[str, Any]) -> dict[str, tirx.Expr]:
        g = _decayed(v, const, 0 if decoupled else weight_decay)
        weight = v["weight"]
        if decoupled and weight_decay:
            weight = weight * (const(1) - v["rates"][0] * const(weight_decay))
        denominator = tirx.sqrt(v["exp_avg_sq"]) * v["rates"][2] + const(epsilon)
        return {
            "exp_avg": v["exp_avg"] * const(beta1) + g * const(1 - beta1),
            "exp_avg_sq": v["exp_avg_sq"] * const(beta2) + g * g * const(1 - beta2),
            "weight": weight - v["rates"][1] * v["exp_avg"] / denominator,
        }

    return elementwise_update("adam", layout, ["gradient", "exp_avg", "exp_avg_sq"], vectors, body)


def assign(layout: Layout, *, accumulate: bool) -> tirx.PrimFunc:
    """``w = value``, or ``w += value``: a running statistic, or a sum of gradients over several steps."""
    return elementwise_update(
        "accumulate" if accumulate else "assign",
        layout,
        ["value"],
        {},
        lambda v: {"weight": v["weight"] + v["value"] if accumulate else v["value"]},
    )


def clear(layout: Layout) -> tirx.PrimFunc:
    """``w = 0``: a sum of gradients that was used up."""
    return elementwise_update("clear", layout, [], {}, lambda _v: {"weight": tirx.const(0, layout.dtype)})


def _constants(layout: Layout) -> Callable[[float], tirx.Expr]:
    return lambda value: tirx.const(value, layout.dtype)


def _decayed(v: dict[str, Any], const: Callable[[float], tirx.Expr], weight_decay: float) -> tirx.Expr:
    """The gradient, times what is left to multiply it with, and the decay of the weight added."""
    g = v["gradient"]
    if "clip" in v:
        g = g * v["clip"][0]
    if "scale" in v:
        g = g * v["scale"]
    return g + v["weight"] * const(weight_decay) if weight_decay else g


def elementwise_update(
    name: str, layout: Layout, operands: Sequence[str], vectors: Mapping[str, int], body: Body
) -> tirx.PrimFunc:
    """A PrimFunc that updates ``weight`` and some of ``operands`` element by element.

    Parameters, in order: ``weight``; the ``operands``, each in the shape of the piece, the gradient in that of the
    part; the ``vectors``, float, of the given length; ``channels``, int32 [count], for a piece. ``body`` maps the
    values at one element to assignments, made in order: what is read after it was assigned is the new value. It gets a
    vector whole, except ``scale``, which has an element for each of the last axis.

    It comes scheduled, as rows of vectors: the schedule primitives refuse blocks that write what they read.
    """
    rows, per_row, inner = _rows(layout, by_channel="scale" in vectors)
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_name(name)
        # Opaque: FuseTIR cannot fuse calls that write two operands in place.
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True, "op_pattern": OPAQUE})
        params = {
            operand: T.arg(operand, T.Buffer(_int64(layout.shape_of(operand)), layout.dtype))
            for operand in ("weight", *operands)
        }
        whole = {vector: T.arg(vector, T.Buffer(_int64([length]), layout.dtype)) for vector, length in vectors.items()}
        channels = T.arg("channels", T.Buffer(_int64([layout.count]), "int32")) if layout.axis is not None else None
        flat = {
            operand: T.decl_buffer((math.prod(layout.shape_of(operand)),), layout.dtype, data=buffer.data)
            for operand, buffer in params.items()
        }
        before = layout.part[0] * math.prod(layout.piece[1:]) if layout.part is not None else 0

        def at_element(row: tirx.Expr, column: tirx.Expr) -> None:
            own = row * inner + column
            place = weight_place = own + before if before else own
            if channels is not None and layout.axis is not None:
                outer, index = tirx.indexdiv(row, per_row), tirx.indexmod(row, per_row)
                weight_place = (outer * layout.shape[layout.axis] + channels[index]) * inner + column
            places = dict.fromkeys(flat, place) | {"weight": weight_place, "gradient": own}
            values = {operand: buffer[places[operand]] for operand, buffer in flat.items()} | whole
            if "scale" in whole:
                values["scale"] = whole["scale"][column]
            for target, value in body(values).items():
                T.buffer_store(flat[target], value, [places[target]])

        run = T.parallel if math.prod(layout.updated) > SMALL else T.serial
        with run(rows) as row:
            if inner >= LANES:
                with T.serial(inner // LANES) as vector, T.vectorized(LANES) as lane:
                    at_element(row, vector * LANES + lane)
            if inner % LANES:
                with T.serial(inner % LANES) as rest:
                    at_element(row, inner // LANES * LANES + rest)
    return builder.get()


def _rows(layout: Layout, by_channel: bool) -> tuple[int, int, int]:
    """The update as rows of contiguous elements: how many, how many to one position in front of the axis, and how
    long. ``by_channel``: a row is the last axis."""
    if layout.axis is not None:
        return math.prod(layout.piece[: layout.axis + 1]), layout.count, math.prod(layout.piece[layout.axis + 1 :])
    size = math.prod(layout.updated)
    if by_channel:
        return size // layout.shape[-1], 1, layout.shape[-1]
    inner = next((extent for extent in (4096, 1024, 256, 64) if size % extent == 0), size)
    return size // inner, 1, inner


def _int64(shape: Sequence[int]) -> list[tirx.IntImm]:
    """Relax's shapes are of 64-bit integers."""
    return [tirx.IntImm("int64", extent) for extent in shape]
