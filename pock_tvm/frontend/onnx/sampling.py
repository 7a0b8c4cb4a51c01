"""GridSample: reads images at computed positions, between pixels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, scalar, shape_of

from .registry import Node, converter, refuse

MODES = {"bilinear": "linear", "bicubic": "cubic"}
"""Names of modes before operator set 20."""
CUBIC = -0.75
"""The cubic convolution's parameter, as in PyTorch."""


@dataclass(frozen=True)
class _Axis:
    """An axis of the images, and the positions along it."""

    node: Node
    extent: int
    corners: bool
    """Whether -1 and 1 are the centres of the outermost pixels, or their outer edges."""
    padding: str

    def _bind(self, x: Expr) -> Expr:
        return self.node.emit(x)

    def positions(self, grid: Expr) -> Expr:
        """Convert coordinates from -1 to 1 to positions from 0."""
        if self.corners:
            return self._bind((grid + scalar(1, grid)) * scalar((self.extent - 1) / 2, grid))
        return self._bind((grid + scalar(1, grid)) * scalar(self.extent / 2, grid) - scalar(0.5, grid))

    def kept(self, at: Expr) -> Expr:
        """Bring positions outside of the image back, unless outside is zero."""
        if self.padding == "zeros":
            return at
        if self.padding == "reflection":
            return self._reflected(at)
        low = 0.0 if self.corners else -0.5
        is_low, is_high = R.less(at, scalar(low, at)), R.greater(at, scalar(self.extent - 1 - low, at))
        return self._bind(R.where(R.logical_or(is_low, is_high), self._clipped(at), at))

    def _clipped(self, at: Expr) -> Expr:
        return self._bind(R.clip(at, 0.0, float(self.extent - 1)))

    def _reflected(self, at: Expr) -> Expr:
        low = 0.0 if self.corners else -0.5
        span = float(self.extent - 1 if self.corners else self.extent)
        if span == 0:
            return self._bind(at * scalar(0, at))
        far = self._bind(R.abs(at - scalar(low, at)))
        turns = self._bind(R.grad.no_grad(R.floor(far / scalar(span, at))))
        rest = self._bind(far - turns * scalar(span, at))
        is_even = self._bind(R.equal(turns, R.floor(turns * scalar(0.5, at)) * scalar(2, at)))
        return self._bind(R.where(is_even, rest, scalar(span, at) - rest) + scalar(low, at))

    def taps(self, at: Expr, mode: str) -> list[tuple[Expr, Expr | None]]:
        """List the pixels that a position reads, as whole numbers, with their weights (None for one)."""
        if mode == "nearest":
            return [(self._bind(R.grad.no_grad(R.round(at))), None)]
        first = self._bind(R.grad.no_grad(R.floor(at)))
        share = self._bind(at - first)
        rest = self._bind(scalar(1, share) - share)
        if mode == "linear":
            return [(first, rest), (self._bind(first + scalar(1, first)), share)]
        weights = [self._far(share), self._near(share), self._near(rest), self._far(rest)]
        return [(self._bind(first + scalar(step - 1, first)), weight) for step, weight in enumerate(weights)]

    def _near(self, x: Expr) -> Expr:
        """The weight of a pixel at a distance ``x`` below 1."""
        inner = self._bind(x * scalar(CUBIC + 2, x) - scalar(CUBIC + 3, x))
        return self._bind(inner * x * x + scalar(1, x))

    def _far(self, x: Expr) -> Expr:
        """The weight of a pixel at a distance ``1 + x`` below 2."""
        far = self._bind(x + scalar(1, x))
        inner = self._bind((far * scalar(CUBIC, x) - scalar(5 * CUBIC, x)) * far + scalar(8 * CUBIC, x))
        return self._bind(inner * far - scalar(4 * CUBIC, x))

    def pixel(self, place: Expr) -> tuple[Expr, Expr | None]:
        """Return a pixel that exists as an integer, and whether the wanted one does (None where always)."""
        if self.padding != "zeros":
            inside = None
            place = self._clipped(self._reflected(place) if self.padding == "reflection" else place)
        else:
            last = scalar(self.extent - 1, place)
            inside = self._bind(R.logical_and(R.greater_equal(place, scalar(0, place)), R.less_equal(place, last)))
            place = self._bind(R.where(inside, place, scalar(0, place)))
        return self._bind(R.astype(place, "int64")), inside


@converter("GridSample")
def grid_sample(node: Node, x: Expr, grid: Expr, *, align_corners: int, mode: str, padding_mode: str) -> Expr:
    """Read ``x`` [N, C, spatial axes] at the positions of ``grid`` [N, result's axes, coordinates], of which the last
    axis of ``x`` comes first."""
    mode = MODES.get(mode, mode)
    refuse(mode not in ("nearest", "linear", "cubic"), f"its attribute 'mode' is '{mode}'")
    refuse(padding_mode not in ("zeros", "border", "reflection"), f"its attribute 'padding_mode' is '{padding_mode}'")
    batch, channels, *extents = shape_of(x)
    *_, last = range(len(shape_of(grid)))
    axes = [_Axis(node, extent, bool(align_corners), padding_mode) for extent in extents]
    taps = []
    for number, axis in enumerate(axes):
        column = len(extents) - 1 - number
        coordinate = node.emit(R.squeeze(R.strided_slice(grid, [last], [column], [column + 1]), [last]))
        taps.append(axis.taps(axis.kept(axis.positions(coordinate)), mode))
    pixels = math.prod(extents)
    rows = node.emit(R.permute_dims(x, [0, *range(2, 2 + len(extents)), 1]))
    rows = node.emit(R.reshape(rows, (batch * pixels, channels)))
    images = relax.const(np.arange(batch, dtype="int64").reshape(-1, *[1] * len(extents)) * pixels, "int64")
    total: Expr | None = None
    for corner in itertools.product(*taps):
        place, inside, weight = images, None, None
        stride = pixels
        for axis, (whole, share) in zip(axes, corner, strict=True):
            stride //= axis.extent
            index, exists = axis.pixel(whole)
            place = node.emit(R.add(place, R.multiply(index, relax.const(stride, "int64"))))
            inside, weight = _both(node, inside, exists, R.logical_and), _both(node, weight, share, R.multiply)
        value = node.emit(R.take(rows, place, axis=0))
        if weight is not None:
            value = node.emit(R.multiply(value, R.expand_dims(weight, -1)))
        if inside is not None:
            value = node.emit(R.where(R.expand_dims(inside, -1), value, scalar(0, value)))
        total = value if total is None else node.emit(R.add(total, value))
    assert total is not None
    return R.permute_dims(total, [0, last, *range(1, last)])


def _both(node: Node, a: Expr | None, b: Expr | None, combine: Callable[[Expr, Expr], Expr]) -> Expr | None:
    """Combine two values, either of which may be missing."""
    if a is None or b is None:
        return a if b is None else b
    return node.emit(combine(a, b))
