"""Resized images, sequences and volumes; patches that are added up."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from tvm.relax import op as R

from relay_passes.ir import Expr, shape_of
from relay_passes.operators.resampling import resampled

from .registry import Site, Unsupported, converter

NEAREST = ("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d")
EXACT = ("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d")
LINEAR = ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "_upsample_bilinear2d_aa")
CUBIC = ("upsample_bicubic2d", "_upsample_bicubic2d_aa")


def resize(
    at: Site,
    input: Expr,  # noqa: A002 - schema
    output_size: Sequence[int] | None,
    align_corners: bool | None = None,
    scale_factors: Sequence[float] | None = None,
    *,
    operator: Any,
) -> Expr:
    """Resize axis by axis, by the matrices that PyTorch's own operator resizes with."""
    shape, x = shape_of(input), input
    if not at.dtype.startswith("float"):
        raise Unsupported(f"of {at.dtype} is not supported: convert to float32 first")
    for axis in range(2, len(shape)):
        scale = scale_factors[axis - 2] if scale_factors else None
        matrix = _matrix(operator, len(shape) - 2, shape[axis], at.shape[axis], align_corners, scale)
        if not np.array_equal(matrix, np.eye(shape[axis])):
            x = at.emit(resampled(x, matrix, axis))
    return x


for _name in (*NEAREST, *EXACT, *LINEAR, *CUBIC):
    _operator = getattr(torch.ops.aten, _name).vec
    converter(f"{_name}.vec")(partial(resize, operator=_operator))


@functools.lru_cache(maxsize=64)
def _matrix(
    operator: Any, rank: int, extent: int, wanted: int, align_corners: bool | None, scale: float | None
) -> np.ndarray:
    """Resize the rows of a unit matrix, as the last axis: the columns of the matrix [wanted, extent]."""
    others = [1] * (rank - 2) + [extent] * (rank > 1)
    corners = [] if align_corners is None else [align_corners]
    size, scales = ([*others, wanted], None) if scale is None else (None, [1.0] * len(others) + [scale])
    units = torch.eye(extent).reshape(*[1] * rank, extent, extent)
    return operator(units, size, *corners, scales).reshape(extent, wanted).T.numpy()


@converter("col2im.default")
def add_patches(
    at: Site,
    x: Expr,
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Expr:
    """Add up patches [N, C * taps, positions] where they overlap, row by row and then column by column."""
    *batch, channels, _ = shape_of(x)
    counts, tables = [], []
    for axis, extent in enumerate(output_size):
        count = (extent + 2 * padding[axis] - dilation[axis] * (kernel_size[axis] - 1) - 1) // stride[axis] + 1
        taps = np.arange(kernel_size[axis])[:, None] * dilation[axis]
        places = (taps + np.arange(count) * stride[axis] - padding[axis]).reshape(-1)
        tables.append((places == np.arange(extent)[:, None]).astype(at.dtype))
        counts.append(count)
    rows = math.prod(batch) * channels // math.prod(kernel_size)
    patches = at.reshape(x, (rows, *kernel_size, *counts))
    patches = at.emit(R.permute_dims(patches, [0, 1, 3, 2, 4]))
    patches = at.reshape(patches, (rows, kernel_size[0] * counts[0], kernel_size[1] * counts[1]))
    for axis, table in enumerate(tables, 1):
        patches = at.emit(resampled(patches, table, axis))
    return at.reshape(patches, at.shape)
