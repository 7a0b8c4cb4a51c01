"""Decomposes layer, RMS, group and instance norm into a normalisation, a scale and a shift."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import IRModule, relax
from tvm.relax import op as R

from ..ir import Expr, constant_value, dtype_of, normalized_axes, op_name, rewrite, shape_of, update_function
from ..operators.registry import plain
from ..operators.training import normalize


@tvm.transform.module_pass(opt_level=0, name="ExpandNormalization")
@dataclass(frozen=True)
class ExpandNormalization:
    """Rewrite ``nn.layer_norm``, ``rms_norm``, ``group_norm`` and ``instance_norm`` as ``normalize(x) * gamma + beta``.

    In, out: a dataflow function. Scale and shift become ordinary operators with their ordinary gradient rules, so that
    a frozen scale costs no gradient and one rule serves every normalisation.
    """

    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        def visit(builder: relax.BlockBuilder, _var: relax.Var, value: Expr) -> Expr:
            expand = EXPANSIONS.get(op_name(value))
            return expand(builder, value) if expand else value

        return update_function(mod, self.function, rewrite(mod[self.function], visit))


def _affine(builder: relax.BlockBuilder, x: Expr, gamma: Expr | None, beta: Expr | None) -> Expr:
    """``x * gamma + beta``, without constant factors of one and terms of zero."""
    if gamma is not None and not _is_constant(gamma, 1):
        x = builder.emit(x * gamma)
    if beta is not None and not _is_constant(beta, 0):
        x = builder.emit(x + beta)
    return x


def _is_constant(expr: Expr, value: float) -> bool:
    known = constant_value(expr)
    return known is not None and bool((known == value).all())


def _layer_norm(builder: relax.BlockBuilder, call: relax.Call) -> Expr:
    x, gamma, beta = call.args
    axes = normalized_axes(plain(call.attrs.axes), len(shape_of(x)))
    y = builder.emit(normalize(x, axes=axes, epsilon=float(call.attrs.epsilon), center=True))
    return _affine(builder, y, gamma if call.attrs.scale else None, beta if call.attrs.center else None)


def _rms_norm(builder: relax.BlockBuilder, call: relax.Call) -> Expr:
    x, weight = call.args
    axes = normalized_axes(plain(call.attrs.axes), len(shape_of(x)))
    return _affine(
        builder, builder.emit(normalize(x, axes=axes, epsilon=float(call.attrs.epsilon), center=False)), weight, None
    )


def _instance_norm(builder: relax.BlockBuilder, call: relax.Call) -> Expr:
    x, gamma, beta = call.args
    rank = len(shape_of(x))
    axes = normalized_axes(plain(call.attrs.axes), rank)
    channel = int(call.attrs.channel_axis) % rank
    y = builder.emit(normalize(x, axes=axes, epsilon=float(call.attrs.epsilon), center=True))
    gamma, beta = (along_axis(builder, vector, channel, rank) for vector in (gamma, beta))
    return _affine(builder, y, gamma if call.attrs.scale else None, beta if call.attrs.center else None)


def _group_norm(builder: relax.BlockBuilder, call: relax.Call) -> Expr:
    x, gamma, beta = call.args
    shape, groups = shape_of(x), int(call.attrs.num_groups)
    channel = int(call.attrs.channel_axis) % len(shape)
    grouped = (*shape[:channel], groups, shape[channel] // groups, *shape[channel + 1 :])
    reduced = [channel + 1] + [
        axis + (axis > channel) for axis in normalized_axes(plain(call.attrs.axes), len(shape)) if axis != channel
    ]
    grouped_x = builder.emit(R.reshape(x, grouped))
    y = builder.emit(normalize(grouped_x, axes=sorted(reduced), epsilon=float(call.attrs.epsilon), center=True))
    y = builder.emit(R.reshape(y, shape))
    gamma, beta = (along_axis(builder, vector, channel, len(shape)) for vector in (gamma, beta))
    return _affine(builder, y, gamma if call.attrs.scale else None, beta if call.attrs.center else None)


def along_axis(builder: relax.BlockBuilder, vector: Expr, axis: int, rank: int) -> Expr:
    """Reshape a vector to broadcast along ``axis`` of a tensor of rank ``rank``."""
    if axis == rank - 1:
        return vector
    shape = (shape_of(vector)[0],) + (1,) * (rank - 1 - axis)
    known = constant_value(vector)
    if known is not None:
        return relax.const(known.reshape(shape), dtype_of(vector))
    return builder.emit(R.reshape(vector, shape))


EXPANSIONS = {
    "relax.nn.layer_norm": _layer_norm,
    "relax.nn.rms_norm": _rms_norm,
    "relax.nn.instance_norm": _instance_norm,
    "relax.nn.group_norm": _group_norm,
}
