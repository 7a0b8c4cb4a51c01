"""Convolutions of volumes as convolutions of planes, for the converters of both frameworks.

Everything that trains, fuses and schedules convolutions of images serves volumes so.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, dtype_of, shape_of

from .indices import Emit

PLANES = [0, 2, 1, 3, 4]
"""Exchanges channels and depth of [N, C, D, H, W]."""


class Geometry(NamedTuple):
    """Geometry of a convolution, along (depth,) height and width."""

    strides: Sequence[int]
    before: Sequence[int]
    """Padding in front, and ``after`` behind."""
    after: Sequence[int]
    dilations: Sequence[int]
    groups: int


def convolved(emit: Emit, x: Expr, weight: Expr, geometry: Geometry) -> Expr:
    """Convolve volumes [N, C, D, H, W] as planes: those that the taps in depth read become further channels.

    So each weight has one product, and is stored in the layout that this reads. With groups the convolutions of the
    taps are added up.
    """
    strides, before, after, dilations, groups = geometry
    x = emit(R.permute_dims(x, PLANES))
    if before[0] or after[0]:
        x = emit(R.nn.pad(x, [0, 0, before[0], after[0], *[0] * 6]))
    batch, extent, *image = shape_of(x)
    taps = shape_of(weight)[2]
    depth = (extent - (taps - 1) * dilations[0] - 1) // strides[0] + 1
    pads = [*before[1:], *after[1:]]
    options = {"strides": list(strides[1:]), "padding": pads, "dilation": list(dilations[1:]), "groups": groups}
    read = []
    for tap in range(taps):
        first = tap * dilations[0]
        read.append(emit(R.strided_slice(x, [1], [first], [first + (depth - 1) * strides[0] + 1], [strides[0]])))
    if groups == 1:
        planes = emit(R.stack(read, 3)) if taps > 1 else read[0]
        rows = emit(R.reshape(planes, (batch * depth, image[0] * taps, *image[1:])))
        outputs, _, _, *window = shape_of(weight)
        flat = emit(R.reshape(weight, (outputs, image[0] * taps, *window)))
        total = emit(R.nn.conv2d(rows, flat, **options))
    else:
        rows_of_taps = [emit(R.reshape(planes, (batch * depth, *image))) for planes in read]
        parts = [emit(R.nn.conv2d(rows, _tap(emit, weight, tap), **options)) for tap, rows in enumerate(rows_of_taps)]
        total = _sum(emit, parts)
    return emit(R.permute_dims(emit(R.reshape(total, (batch, depth, *shape_of(total)[1:]))), PLANES))


def transposed(emit: Emit, x: Expr, weight: Expr, geometry: Geometry, extra: Sequence[int]) -> Expr:
    """Compute the transposed convolution of volumes [N, C, D, H, W]; ``extra`` is its output padding.

    Plane ``d`` and tap ``t`` add to the result's plane ``stride * d + dilation * t - before``. The planes of equal
    remainder by the stride are added up apart, and then interleaved: no zeros are multiplied.
    """
    strides, before, after, dilations, groups = geometry
    batch, _, extent = shape_of(x)[:3]
    taps, stride = shape_of(weight)[2], strides[0]
    depth = stride * (extent - 1) + dilations[0] * (taps - 1) + 1 - before[0] - after[0] + extra[0]
    length = math.ceil(depth / stride)
    planes = emit(R.permute_dims(x, PLANES))
    planes = emit(R.reshape(planes, (batch * extent, *shape_of(planes)[2:])))
    phases: list[list[Expr]] = [[] for _ in range(stride)]
    flat = Geometry(strides[1:], before[1:], after[1:], dilations[1:], groups)
    for tap in range(taps):
        shift, phase = divmod(dilations[0] * tap - before[0], stride)
        y = transposed_planes(emit, planes, _tap(emit, weight, tap), flat, extra[1:])
        image = shape_of(y)[1:]
        first, last = max(0, -shift), min(extent, length - shift)
        if first < last:
            kept = emit(R.reshape(y, (batch, extent, *image)))
            ends = first + shift, length - last - shift
            if (first, last) != (0, extent):
                kept = emit(R.strided_slice(kept, [1], [first], [last]))
            phases[phase].append(emit(R.nn.pad(kept, [0, 0, *ends, *[0] * 6])) if any(ends) else kept)
    none = relax.const(0, dtype_of(x))
    sums = [_sum(emit, own) if own else emit(R.full((batch, length, *image), none)) for own in phases]
    both = sums[0] if stride == 1 else emit(R.stack(sums, 2))
    whole = emit(R.reshape(both, (batch, length * stride, *image)))
    if depth < length * stride:
        whole = emit(R.strided_slice(whole, [1], [0], [depth]))
    return emit(R.permute_dims(whole, PLANES))


def transposed_planes(emit: Emit, x: Expr, weight: Expr, geometry: Geometry, extra: Sequence[int]) -> Expr:
    """Compute the transposed convolution of images [N, C, H, W]; ``extra`` is its output padding, of any size.

    TVM's operator takes an output padding below its strides: what is more takes away from the padding behind, and
    further positions, which no tap reaches, are zero.
    """
    strides, before, after, dilations, groups = geometry
    more = [max(0, wanted - (stride - 1)) for wanted, stride in zip(extra, strides, strict=True)]
    beyond = [max(0, wanted - pad) for wanted, pad in zip(more, after, strict=True)]
    y = emit(
        R.nn.conv2d_transpose(
            x, weight, strides=list(strides), dilation=list(dilations), groups=groups,
            padding=[*before, *(max(0, pad - wanted) for pad, wanted in zip(after, more, strict=True))],
            output_padding=[wanted - part for wanted, part in zip(extra, more, strict=True)],
        )
    )  # fmt: skip
    return emit(R.nn.pad(y, [0, 0, 0, 0, 0, beyond[0], 0, beyond[1]])) if any(beyond) else y


def _tap(emit: Emit, weight: Expr, tap: int) -> Expr:
    """Return the weight of the planes at one tap in depth."""
    first, second, _, *window = shape_of(weight)
    return emit(R.reshape(emit(R.strided_slice(weight, [2], [tap], [tap + 1])), (first, second, *window)))


def _sum(emit: Emit, parts: list[Expr]) -> Expr:
    return functools.reduce(lambda total, part: emit(R.add(total, part)), parts)
