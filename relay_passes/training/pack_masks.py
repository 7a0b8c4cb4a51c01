"""Keeps masks for the backward graph as bits."""

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
    rewrite,
    shape_of,
    substitute,
    update_function,
    used_vars,
)
from ..operators.training import pack_bits, unpack_bits
from .save_small import loss_of

SMALL = 256
"""Bytes of a mask that are not worth a kernel."""


@tvm.transform.module_pass(opt_level=0, name="PackMasks")
@dataclass(frozen=True)
class PackMasks:
    """Pack each boolean that the backward graph reads of the forward graph, eight to a byte.

    In: a function that :class:`SaveSmall` gave; out: the same with ``pock.pack_bits`` where a mask is made, and
    ``pock.unpack_bits`` in front of each use in the backward graph, which becomes a part of the kernel that uses it.
    The mask of a ReLU is all that a layer with a frozen weight keeps: a scheme of biases keeps an eighth.
    """

    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        bindings = bindings_of(func)
        end = [binding.var for binding in bindings].index(loss_of(func))
        late = {binding.var for binding in bindings[end + 1 :]}
        masks = {binding.var for binding in bindings[:end] if _is_mask(binding.var, binding.value)}
        whole: dict[relax.Var, relax.Var] = {}  # packed bits -> the mask

        def visit(builder: relax.BlockBuilder, var: relax.Var, value: Expr) -> Expr:
            read = dict.fromkeys(used for used in used_vars(value) if used in whole)
            if var in late:
                return substitute(value, {used: builder.emit(_unpacked(used, whole[used])) for used in read})
            value = substitute(value, {used: whole[used] for used in read})
            if var not in masks:
                return value
            mask = builder.emit(value, var.name)
            bits = builder.emit(pack_bits(mask, axis=_axis_of_bytes(shape_of(mask))))
            whole[bits] = mask
            return bits

        return update_function(mod, self.function, rewrite(func, visit) if masks else func)


def _is_mask(var: relax.Var, value: Expr) -> bool:
    is_tensor = isinstance(value, relax.Call) and isinstance(var.ty, relax.TensorType)
    return is_tensor and is_kept(var) and dtype_of(var) == "bool" and bytes_of(var) > SMALL


def _axis_of_bytes(shape: Sequence[int]) -> int:
    """The axis along which most elements go into a byte; where there is a choice one in front of the last, and not the
    first: images stay apart."""
    axes = range(len(shape) - 1) if max(shape[:-1], default=1) > 1 else range(len(shape))
    return max(axes, key=lambda axis: (shape[axis] / packed_shape(shape, axis)[axis], axis > 0, -axis))


def _unpacked(bits: relax.Var, mask: relax.Var) -> relax.Call:
    axis = _axis_of_bytes(shape_of(mask))
    return unpack_bits(bits, axis=axis, extent=shape_of(mask)[axis])
