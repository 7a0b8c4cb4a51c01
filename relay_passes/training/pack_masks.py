"""Saves masks for the backward graph as bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax

from schedules.kernels.bits import packed_shape

from ..ir import (
    Expr,
    bindings_of,
    bytes_of,
    dtype_of,
    is_kept,
    op_name,
    rewrite,
    shape_of,
    substitute,
    update_function,
    used_vars,
)
from ..operators.training import pack_bits, unpack_bits
from .save_small import loss_of

LARGEST_UNPACKED = 256
"""Bytes of the largest mask that stays unpacked: it is not worth a kernel."""
ATTENTION = frozenset({"pock.attention_query_gradient", "pock.attention_key_gradient", "pock.attention_value_gradient"})


@tvm.transform.module_pass(opt_level=0, name="PackMasks")
@dataclass(frozen=True)
class PackMasks:
    """Pack the boolean tensors that the backward graph reads of the forward graph, eight elements to a byte.

    In: the result of :class:`SaveSmall`. Out: the same with ``pock.pack_bits`` after each mask, and
    ``pock.unpack_bits`` before each use in the backward graph, where it fuses into the kernel that reads it. A ReLU's
    mask is all that a layer with a frozen weight saves, so a scheme of biases saves an eighth.
    """

    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        bindings = bindings_of(func)
        loss_index = [binding.var for binding in bindings].index(loss_of(func))
        backward = {binding.var for binding in bindings[loss_index + 1 :]}
        masks = {binding.var for binding in bindings[:loss_index] if _is_mask(binding.var, binding.value)}
        # Attention reads its mask again and again, and fuses with nothing.
        masks -= {used for each in bindings if op_name(each.value) in ATTENTION for used in used_vars(each.value)}
        mask_of: dict[relax.Var, relax.Var] = {}  # by packed bits

        def visit(builder: relax.BlockBuilder, var: relax.Var, value: Expr) -> Expr:
            read = dict.fromkeys(used for used in used_vars(value) if used in mask_of)
            if var in backward:
                return substitute(value, {used: builder.emit(_unpacked(used, mask_of[used])) for used in read})
            value = substitute(value, {used: mask_of[used] for used in read})
            if var not in masks:
                return value
            mask = builder.emit(value, var.name)
            bits = builder.emit(pack_bits(mask, axis=_axis_of_bytes(shape_of(mask))))
            mask_of[bits] = mask
            return bits

        return update_function(mod, self.function, rewrite(func, visit) if masks else func)


def _is_mask(var: relax.Var, value: Expr) -> bool:
    is_tensor = isinstance(value, relax.Call) and isinstance(var.ty, relax.TensorType)
    return is_tensor and is_kept(var) and dtype_of(var) == "bool" and bytes_of(var) > LARGEST_UNPACKED


def _axis_of_bytes(shape: Sequence[int]) -> int:
    """The axis to pack along: an axis before the last if one is longer than 1, of these the one that fills its bytes
    best, by preference not the batch axis, so that images share no byte."""
    axes = range(len(shape) - 1) if max(shape[:-1], default=1) > 1 else range(len(shape))
    return max(axes, key=lambda axis: (shape[axis] / packed_shape(shape, axis)[axis], axis > 0, -axis))


def _unpacked(bits: relax.Var, mask: relax.Var) -> relax.Call:
    axis = _axis_of_bytes(shape_of(mask))
    return unpack_bits(bits, axis=axis, extent=shape_of(mask)[axis])
