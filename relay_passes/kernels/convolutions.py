"""Kernels of convolutions, of their data gradients and of their weight gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import relax, topi

from schedules.extents import parts
from schedules.kernels import conv2d as conv2d_kernels
from schedules.target import Target

from ..ir import Expr, bytes_of, shape_of
from ..operators.registry import attributes_of, plain
from .legalization import call_kernel, cropped_product, legalizes_for_target, moved, parts_of_slices, product
from .movement import permute_dims


@legalizes_for_target("relax.nn.conv2d")
def _conv2d(target: Target, builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    attrs = call.attrs
    if (attrs.data_layout, attrs.kernel_layout) != ("NHWC", "HWIO"):
        return relax.transform.legalize_ops.nn._nn_conv2d(builder, call)
    geometry: dict[str, Any] = {
        name: plain(getattr(attrs, name)) for name in ("strides", "padding", "dilation", "groups")
    }
    x, weight = call.args
    is_grouped = geometry["groups"] not in (1, shape_of(x)[3])
    if is_grouped and not target.layouts.masks_edges:  # no schedule of these pads inside the loops
        x, geometry["padding"] = _padded(builder, x, geometry["padding"]), (0, 0, 0, 0)
    return product(builder, conv2d_kernels.conv2d, x, weight, **geometry)


@legalizes_for_target("pock.conv2d_data_gradient")
def _conv2d_data_gradient(target: Target, builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower a data gradient. If not depthwise, it reads the weight transposed, along its input channels. All phases of
    a stride compute equally many rows and columns: the image is rounded up to a multiple of the stride, then cropped.
    Neither is done where a target's products read across, and mask edges."""
    grad, weight = call.args
    attributes = attributes_of(call)
    steps = (1, 1) if target.layouts.masks_edges else attributes["strides"]
    whole = [math.ceil(extent / step) * step for extent, step in zip(attributes["size"], steps, strict=True)]
    attributes["size"] = whole
    is_straight = attributes.get("transposed", False) or attributes.get("across", False)
    is_depthwise = attributes["groups"] > 1 and shape_of(weight)[2] == 1
    if not is_depthwise and not is_straight and not target.layouts.reads_across:
        if attributes["groups"] == 1:
            turned = permute_dims(target, builder, relax.op.permute_dims(weight, (0, 1, 3, 2)))
        else:
            turned = moved(builder, conv2d_kernels.turned, weight, groups=attributes["groups"])
        weight, attributes["transposed"] = builder.emit(turned), True
    kernel, shape = conv2d_kernels.conv2d_data_gradient, shape_of(call)
    if list(shape[1:3]) == whole:
        return product(builder, kernel, grad, weight, **attributes)
    return cropped_product(builder, shape, kernel, grad, weight, **attributes)


@legalizes_for_target("pock.conv2d_weight_gradient")
def _conv2d_weight_gradient(target: Target, builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Split the reduction over pixels into partial sums that run in parallel. Done where the sums are small beside X
    and the split is needed to occupy all cores or to read X from memory only once, unless the target does. If dW has
    few output channels, its transpose is computed: vectors run along the input channels."""
    x, grad = call.args
    attributes, result = attributes_of(call), shape_of(call)
    if target.layouts.masks_edges:
        return product(builder, conv2d_kernels.conv2d_weight_gradient, x, grad, **attributes)
    batch, height, _, _ = shape_of(grad)
    *taps, group_in, out_channels = result
    padding, groups = attributes["padding"], attributes["groups"]
    is_depthwise = groups > 1 and group_in == 1
    tiles = math.ceil(out_channels / 32) if is_depthwise else math.prod(taps) * group_in * out_channels / 256
    most = math.prod(shape_of(x)) // math.prod(result)
    needs_parts = any(padding) and not is_depthwise
    is_large = bytes_of(x) + bytes_of(grad) > target.traits.cores * target.traits.cache_bytes
    want = 4 * target.traits.cores if needs_parts or is_large else math.ceil(4 * target.traits.cores / tiles)
    want = max(want, min(parts_of_slices(target, x, grad), most // PIXELS_OF_PART))
    chunks = parts((batch, height), min(want, most)) if most > 1 else (1, 1)
    if needs_parts and (chunks == (1, 1) or groups > 1):
        x, attributes["padding"] = _padded(builder, x, padding), (0, 0, 0, 0)
    is_short = target.layouts.padded_columns(out_channels) != out_channels or (is_large and out_channels <= FEW_OUTPUTS)
    if groups == 1 and is_short and out_channels < group_in == target.layouts.padded_columns(group_in):
        attributes["turned"] = True
    if chunks != (1, 1):
        attributes["chunks"] = chunks
    sums = product(builder, conv2d_kernels.conv2d_weight_gradient, x, grad, **attributes)
    if chunks != (1, 1):
        sums = call_kernel(builder, topi.sum, builder.emit(sums), axis=[0, 1])
    if "turned" not in attributes:
        return sums
    return permute_dims(target, builder, relax.op.permute_dims(builder.emit(sums), (0, 1, 3, 2)))


PIXELS_OF_PART = 16
"""Fewest elements of X for one of the partial sums of a weight gradient that more than occupy the cores: these are
written and read again."""
FEW_OUTPUTS = 48
"""Most output channels of a weight gradient that is computed transposed because X is large. From measurements on x86 at
batch 8: 1.7 times as fast for 144 to 32 channels, 1.0 times for 384 to 64."""


def _padded(builder: relax.BlockBuilder, x: Expr, padding: Sequence[int]) -> Expr:
    return builder.emit(moved(builder, conv2d_kernels.pad_spatial, x, padding=padding)) if any(padding) else x
