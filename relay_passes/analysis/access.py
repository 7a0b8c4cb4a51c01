"""Finds the positions of its operands that a call reads to compute some positions of its result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tvm import relax
from tvm.relax import op as R

from ..ir import Expr, normalized_axes, op_name, operands, shape_of, slice_bounds
from ..operators import resampling, training  # noqa: F401 - the records of their operators
from ..operators.record import Kind, record_of, rule
from ..operators.registry import plain


@dataclass(frozen=True)
class Selection:
    """Half-open range [``first``, ``end``) of positions along a non-negative axis."""

    axis: int
    first: int
    end: int

    def along(self, axis: int) -> Selection:
        return Selection(axis, self.first, self.end)

    def taken(self, x: Expr) -> Expr:
        """Return the selected part of ``x``."""
        return R.strided_slice(x, [self.axis], [self.first], [self.end])

    def of(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the selected part of a value of this shape."""
        return (*shape[: self.axis], self.end - self.first, *shape[self.axis + 1 :])


Reads = list["Selection | None"]
"""Positions that a call reads of each operand, or None for all of them. For a tuple operand they hold for each
field."""


def reads(value: Expr, selection: Selection) -> Reads | None:
    """Return the positions of the operands that a selection of the result (of each result) needs; None if the operator
    mixes positions along that axis."""
    record = record_of(value)
    find = record.reads or OF_KIND.get(record.kind)
    return None if find is None else find(value, selection)


# ---- rules: a call and a selection of its result in, the reads out ---------------------------------------------------


@rule("reads", "pock.requantize", "pock.requantize_sum", "pock.dequantize", "pock.dequantize_sums")
def _of_elements(call: relax.Call, selection: Selection) -> Reads | None:
    if not isinstance(call.ty, relax.TensorType):
        return None
    return [_broadcast(arg, selection, len(shape_of(call))) for arg in call.args]


@rule("reads", "pock.planes_layer_sum")
def _of_planes(call: relax.Call, selection: Selection) -> Reads | None:
    """Images of the first operand and of the residual, the last."""
    if selection.axis != 0:
        return None
    *others, _ = _of_first(call, selection)
    return [*others, _broadcast(call.args[-1], selection, len(shape_of(call)))]


def _of_images(call: relax.Call, selection: Selection) -> Reads | None:
    layout = getattr(call.attrs, "data_layout", None) or getattr(call.attrs, "layout", "NHWC")
    return _of_first(call, selection) if selection.axis == 0 and str(layout).startswith("N") else None


def _of_reduction(call: relax.Call, selection: Selection) -> Reads | None:
    rank = len(shape_of(call.args[0]))
    reduced = normalized_axes(plain(call.attrs.axis), rank)
    left = [each for each in range(rank) if call.attrs.keepdims or each not in reduced]
    axis = left[selection.axis]
    return None if axis in reduced else _of_first(call, selection.along(axis))


def _of_reshape(call: relax.Call, selection: Selection) -> Reads | None:
    axis = _same_axis(shape_of(call.args[0]), shape_of(call), selection.axis)
    return None if axis is None else _of_first(call, selection.along(axis))


OF_KIND = {
    Kind.ELEMENTWISE: _of_elements,
    Kind.PER_IMAGE: _of_images,
    Kind.REDUCTION: _of_reduction,
    Kind.RESHAPE: _of_reshape,
}


@rule("reads", "relax.nn.prelu")
def _of_prelu(call: relax.Call, selection: Selection) -> Reads:
    """Map one axis to the slopes, which have no others."""
    x, slopes = (shape_of(arg) for arg in call.args)
    has_slopes = slopes[0] > 1 and selection.axis == int(call.attrs.axis) % len(x)
    return [selection, selection.along(0) if has_slopes else None]


@rule("reads", "relax.nn.softmax", "relax.nn.log_softmax")
def _of_softmax(call: relax.Call, selection: Selection) -> Reads | None:
    return _of_rows(call, selection, [int(call.attrs.axis)])


@rule("reads", "pock.safe_softmax")
def _of_safe_softmax(call: relax.Call, selection: Selection) -> Reads | None:
    return _of_rows(call, selection, [-1])


@rule("reads", "pock.normalize")
def _of_normalize(call: relax.Call, selection: Selection) -> Reads | None:
    return _of_rows(call, selection, plain(call.attrs["axes"]))


def _of_rows(call: relax.Call, selection: Selection, axes: Sequence[int]) -> Reads | None:
    """Rule of an operator that mixes positions along some axes only."""
    rank = len(shape_of(call))
    return None if selection.axis in [axis % rank for axis in axes] else _of_elements(call, selection)


@rule("reads", "pock.matmul")
def _of_product(call: relax.Call, selection: Selection) -> Reads:
    """Map rows to the first operand, columns to the second, and batch axes to both."""
    found: Reads = []
    rank = len(shape_of(call))
    for index, arg in enumerate(call.args):
        if selection.axis < rank - 2:
            found.append(_broadcast(arg, selection, rank))
        elif selection.axis == rank - 2 + index:
            transposed = bool(call.attrs["transpose_b" if index else "transpose_a"])
            found.append(selection.along(len(shape_of(arg)) - 2 + (index ^ transposed)))
        else:
            found.append(None)
    return found


@rule(
    "reads",
    "pock.attention",
    "pock.attention_query_gradient",
    "pock.attention_key_gradient",
    "pock.attention_value_gradient",
    "pock.attention_gradients",
)
def _of_attention(call: relax.Call, selection: Selection) -> Reads | None:
    """Map batch axes to every operand. Masks have to agree."""
    rank = max(len(shape_of(arg)) for _, _, arg in operands(call))
    if selection.axis >= rank - 2:
        return None
    found: Reads = []
    for index, arg in enumerate(call.args):
        own = arg.fields if isinstance(arg, relax.Tuple) else [arg]
        # Sums of rows, [.., n], have an axis less than the others.
        is_of_rows = op_name(call) != "pock.attention" and index == ALONG
        ways = {_broadcast(each, selection, rank - is_of_rows) for each in own}
        if len(ways) > 1:
            return None
        found.append(ways.pop() if ways else None)
    return found


ALONG = 6
"""Position of the sums of rows among the operands of attention's gradients."""


@rule("reads", "relax.concat")
def _of_concat(call: relax.Call, selection: Selection) -> Reads | None:
    return None if int(call.attrs.axis or 0) % len(shape_of(call)) == selection.axis else [selection]


@rule("reads", "relax.split")
def _of_split(call: relax.Call, selection: Selection) -> Reads | None:
    return None if int(call.attrs.axis) % len(shape_of(call.args[0])) == selection.axis else [selection]


@rule("reads", "relax.take")
def _of_look_up(call: relax.Call, selection: Selection) -> Reads | None:
    """Map the axes of the result: those of the indices replace the axis that is looked up."""
    if call.attrs.axis is None:
        return None
    table, indices = (shape_of(arg) for arg in call.args)
    axis = int(call.attrs.axis) % len(table)
    if selection.axis < axis:
        return [selection, None]
    if selection.axis < axis + len(indices):
        return [None, selection.along(selection.axis - axis)]
    return [selection.along(selection.axis - len(indices) + 1), None]


@rule("reads", "pock.winograd_output")
def _of_winograd_output(call: relax.Call, selection: Selection) -> Reads | None:
    """Map whole images [n, h, w, c] to their tiles [16, n * tiles, c]."""
    count = shape_of(call.args[0])[1] // shape_of(call)[0]
    return [Selection(1, selection.first * count, selection.end * count)] if selection.axis == 0 else None


@rule("reads", "pock.winograd_input")
def _of_winograd_input(call: relax.Call, selection: Selection) -> Reads | None:
    """Map all tiles [16, n * tiles, c] of some images to those images [n, h, w, c]."""
    count = shape_of(call)[1] // shape_of(call.args[0])[0]
    is_whole = selection.axis == 1 and selection.first % count == selection.end % count == 0
    return [Selection(0, selection.first // count, selection.end // count)] if is_whole else None


@rule("reads", "relax.permute_dims")
def _of_transpose(call: relax.Call, selection: Selection) -> Reads:
    rank = len(shape_of(call))
    axes = plain(call.attrs.axes) or tuple(reversed(range(rank)))
    return [selection.along(axes[selection.axis] % rank)]


@rule("reads", "relax.strided_slice")
def _of_slice(call: relax.Call, selection: Selection) -> Reads | None:
    rank = len(shape_of(call.args[0]))
    is_cut = selection.axis in {each % rank for each in slice_bounds(call.args)[0]}
    return None if is_cut else _of_first(call, selection)


@rule("reads", "pock.pack_bits", "pock.unpack_bits")
def _of_bits(call: relax.Call, selection: Selection) -> Reads | None:
    return None if selection.axis == int(call.attrs["axis"]) else [selection]


@rule("reads", "pock.resample")
def _of_resampled(call: relax.Call, selection: Selection) -> Reads | None:
    return None if selection.axis == int(call.attrs["axis"]) else _of_first(call, selection)


@rule("reads", "relax.nn.pad")
def _of_padding(call: relax.Call, selection: Selection) -> Reads | None:
    widths = plain(call.attrs.pad_width)[2 * selection.axis : 2 * selection.axis + 2]
    return None if any(widths) else _of_first(call, selection)


def _of_first(call: relax.Call, selection: Selection) -> Reads:
    """Select from the first operand, and read the others whole."""
    return [selection] + [None] * (len(call.args) - 1)


def _broadcast(arg: Expr, selection: Selection, rank: int) -> Selection | None:
    """Map a selection of the result to an operand that may be broadcast to it."""
    if not isinstance(arg.ty, relax.TensorType):
        return None
    shape = shape_of(arg)
    axis = selection.axis - (rank - len(shape))
    return selection.along(axis) if axis >= 0 and shape[axis] != 1 else None


def _same_axis(before: Sequence[int], after: Sequence[int], axis: int) -> int | None:
    """Return the axis of a reshape's operand that becomes axis ``axis`` of its result unchanged; None if there is
    none."""
    outer = math.prod(after[:axis])
    for index, extent in enumerate(before):
        if math.prod(before[:index]) == outer and extent == after[axis]:
            return index
    return None
