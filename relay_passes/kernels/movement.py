"""Kernels that look up, pad, slice, turn or keep elements."""

from __future__ import annotations

import math

from tvm import relax, tirx, topi

from schedules.kernels import OPAQUE, indexing
from schedules.kernels.transpose import transpose
from schedules.target import Target

from ..ir import dtype_of, shape_of, slice_bounds
from ..operators.registry import attributes_of, plain
from .legalization import call_kernel, legalizes, legalizes_for_target, moved, product
from .lift_frozen import EACH_STEP


@legalizes("relax.take")
def _take(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    x, indices = call.args
    axis = call.attrs.axis
    if axis is None:
        x, axis = builder.emit(relax.op.reshape(x, [math.prod(shape_of(x))])), 0
    return builder.call_te(indexing.take, x, indices, axis=int(axis) % len(shape_of(x)), primfunc_name_hint="take")


@legalizes("relax.gather_elements")
def _gather_elements(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    x, indices = call.args
    axis = int(call.attrs.axis) % len(shape_of(x))
    return builder.call_te(indexing.take_along, x, indices, axis=axis, primfunc_name_hint="take_along")


@legalizes("relax.index_tensor")
def _index_tensor(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    x, indices = call.args
    return builder.call_te(indexing.index_tensor, x, list(indices.fields), primfunc_name_hint="index_tensor")


@legalizes("relax.nn.pad")
def _pad(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower constant padding; other modes use TVM's kernels."""
    if call.attrs.pad_mode != "constant":
        return relax.transform.legalize_ops.nn._nn_pad(builder, call)
    widths, value = plain(call.attrs.pad_width), tirx.const(call.attrs.pad_value, dtype_of(call))
    return moved(builder, topi.nn.pad, call.args[0], pad_before=widths[0::2], pad_after=widths[1::2], pad_value=value)


@legalizes("relax.strided_slice")
def _strided_slice(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    axes, begin, end, strides = slice_bounds(call.args)
    x = call.args[0]
    return moved(builder, topi.strided_slice, x, begin=begin, end=end, strides=strides, axes=axes)


@legalizes_for_target("relax.permute_dims")
def permute_dims(target: Target, builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower a transposition: to a kernel that turns tiles where the target has one, which stays alone."""
    (x,), shape = call.args, shape_of(call.args[0])
    axes = [int(axis) for axis in call.attrs.axes] if call.attrs.axes is not None else list(range(len(shape)))[::-1]
    if target.layouts.transposes_alone(shape, axes, dtype_of(x)):
        return product(builder, transpose, x, pattern=OPAQUE, axes=axes)
    return call_kernel(builder, topi.transpose, x, axes=axes)


@legalizes("pock.relayout")
def _relayout(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    attrs = {"op_pattern": OPAQUE, EACH_STEP: True}
    return builder.call_te(
        transpose, call.args[0], primfunc_name_hint="relayout", primfunc_attrs=attrs, **attributes_of(call)
    )


@legalizes("pock.part", "pock.join")
def _as_it_is(_builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Keep a view: the memory planner aliases it, so it needs no kernel."""
    return call
