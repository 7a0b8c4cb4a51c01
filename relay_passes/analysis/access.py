"""Which positions of its operands a call reads to compute some positions of its result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tvm import relax
from tvm.relax import op as R

from ..ir import Expr, normalized_axes, op_name, shape_of, slice_bounds
from ..operators.families import BATCHED, ELEMENTWISE, REDUCTIONS, RESHAPES
from ..operators.registry import plain


@dataclass(frozen=True)
class Selection:
    """The positions ``first`` to ``end`` (not included) along an axis, counted from the front."""

    axis: int
    first: int
    end: int

    def along(self, axis: int) -> Selection:
        return Selection(axis, self.first, self.end)

    def taken(self, x: Expr) -> Expr:
        """What is selected of ``x``."""
        return R.strided_slice(x, [self.axis], [self.first], [self.end])

    def of(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of what is selected."""
        return (*shape[: self.axis], self.end - self.first, *shape[self.axis + 1 :])


Demands = list["Selection | None"]
"""What positions of each operand a call reads: None for all of them. Of a tuple, the same of each field."""


def demands(value: Expr, selection: Selection) -> Demands | None:
    """What a call reads to compute a selection of its result (of each of them); None where it does not treat the
    positions apart."""
    if not isinstance(value, relax.Call):
        return None
    name = op_name(value)
    if name == "relax.split":
        rank = len(shape_of(value.args[0]))
        return None if int(value.attrs.axis) % rank == selection.axis else [selection]
    if not isinstance(value.ty, relax.TensorType):
        return None
    shape = shape_of(value)
    if name in ELEMENTWISE or name in (
        "pock.normalize",
        "pock.safe_softmax",
        "relax.nn.softmax",
        "relax.nn.log_softmax",
    ):
        if name not in ELEMENTWISE and selection.axis in _shared_axes(value, len(shape)):
            return None
        return [_broadcast(arg, selection, len(shape)) for arg in value.args]
    if name == "pock.matmul":
        return _of_product(value, selection, len(shape))
    if name in BATCHED and selection.axis == 0 and (name.startswith("pock.") or _layout(value).startswith("N")):
        return [selection] + [None] * (len(value.args) - 1)
    if name == "relax.concat":
        return None if int(value.attrs.axis or 0) % len(shape) == selection.axis else [selection]
    if name == "relax.take" and value.attrs.axis is not None:
        return _of_look_up(value, selection)
    if name in ("pock.winograd_input", "pock.winograd_output"):
        found = _of_tiles(value, selection)
        return None if found is None else [found]
    axis = _moved_axis(value, shape, selection.axis)
    return None if axis is None else [selection.along(axis)] + [None] * (len(value.args) - 1)


def _moved_axis(call: relax.Call, shape: Sequence[int], axis: int) -> int | None:
    """The axis of the first operand that is ``axis`` of the result, and is only moved; None where there is none."""
    name = op_name(call)
    if name == "relax.permute_dims":
        return (plain(call.attrs.axes) or tuple(reversed(range(len(shape)))))[axis] % len(shape)
    if name in RESHAPES:
        return _same_axis(shape_of(call.args[0]), shape, axis)
    if name in REDUCTIONS:
        rank = len(shape_of(call.args[0]))
        reduced = normalized_axes(plain(call.attrs.axis), rank)
        left = [each for each in range(rank) if call.attrs.keepdims or each not in reduced]
        return None if left[axis] in reduced else left[axis]
    if name == "relax.strided_slice":
        rank = len(shape_of(call.args[0]))
        return None if axis in {each % rank for each in slice_bounds(call.args)[0]} else axis
    if name in ("pock.pack_bits", "pock.unpack_bits"):
        return None if axis == int(call.attrs["axis"]) else axis
    if name == "relax.nn.pad":
        return None if any(plain(call.attrs.pad_width)[2 * axis : 2 * axis + 2]) else axis
    return None


def _layout(call: relax.Call) -> str:
    """The layout of the images that a call of :data:`BATCHED` reads."""
    return str(getattr(call.attrs, "data_layout", None) or call.attrs.layout)


def _shared_axes(call: relax.Call, rank: int) -> list[int]:
    """The axes along which positions of the result depend on each other."""
    if op_name(call) == "pock.safe_softmax":
        return [rank - 1]
    axes = plain(call.attrs["axes"]) if op_name(call) == "pock.normalize" else [int(call.attrs.axis)]
    return [axis % rank for axis in axes]


def _broadcast(arg: Expr, selection: Selection, rank: int) -> Selection | None:
    """A selection of the result as one of an operand that may be broadcast to it."""
    if not isinstance(arg.ty, relax.TensorType):
        return None
    shape = shape_of(arg)
    axis = selection.axis - (rank - len(shape))
    return selection.along(axis) if axis >= 0 and shape[axis] != 1 else None


def _of_product(call: relax.Call, selection: Selection, rank: int) -> Demands:
    """Rows are those of the first operand, columns those of the second; the axes before them are those of both."""
    found: Demands = []
    for index, arg in enumerate(call.args):
        if selection.axis < rank - 2:
            found.append(_broadcast(arg, selection, rank))
        elif selection.axis == rank - 2 + index:
            transposed = bool(call.attrs["transpose_b" if index else "transpose_a"])
            found.append(selection.along(len(shape_of(arg)) - 2 + (index ^ transposed)))
        else:
            found.append(None)
    return found


def _of_look_up(call: relax.Call, selection: Selection) -> Demands:
    """The axes of the indices stand in place of the one that is looked up."""
    table, indices = (shape_of(arg) for arg in call.args)
    axis = int(call.attrs.axis) % len(table)
    if selection.axis < axis:
        return [selection, None]
    if selection.axis < axis + len(indices):
        return [None, selection.along(selection.axis - axis)]
    return [selection.along(selection.axis - len(indices) + 1), None]


def _of_tiles(call: relax.Call, selection: Selection) -> Selection | None:
    """Of whole images [n, h, w, c] all tiles [16, n * tiles, c], and the other way round."""
    if op_name(call) == "pock.winograd_output":
        count = shape_of(call.args[0])[1] // shape_of(call)[0]
        return Selection(1, selection.first * count, selection.end * count) if selection.axis == 0 else None
    count = shape_of(call)[1] // shape_of(call.args[0])[0]
    is_whole = selection.axis == 1 and selection.first % count == selection.end % count == 0
    return Selection(0, selection.first // count, selection.end // count) if is_whole else None


def _same_axis(before: Sequence[int], after: Sequence[int], axis: int) -> int | None:
    """The axis of a reshape's operand that the reshape leaves as it is, as axis ``axis`` of its result."""
    outer = math.prod(after[:axis])
    for index, extent in enumerate(before):
        if math.prod(before[:index]) == outer and extent == after[axis]:
            return index
    return None
