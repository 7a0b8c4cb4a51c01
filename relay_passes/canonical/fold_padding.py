"""Moves explicit zero padding into the convolution that reads it."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import IRModule, relax
from tvm.relax import op as R

from ..ir import Expr, eliminate_dead, op_name, rewrite, update_function
from ..operators.registry import plain


@tvm.transform.module_pass(opt_level=0, name="FoldPadding")
@dataclass(frozen=True)
class FoldPadding:
    """Fold ``conv2d(pad(x))`` into one convolution with more padding, and drop padding of width 0.

    In, out: a dataflow function, channels last. Networks converted from TensorFlow pad explicitly, because their
    padding is asymmetric. A convolution takes four widths, and then no padded copy is kept for its weight gradient.
    """

    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        padded: dict[relax.Var, relax.Call] = {}

        def visit(builder: relax.BlockBuilder, var: relax.Var, value: Expr) -> Expr:
            if op_name(value) == "relax.nn.pad":
                if not any(plain(value.attrs.pad_width)):
                    return value.args[0]
                new = builder.emit(value, var.name)
                if _pads_images_with_zeros(value):
                    padded[new] = value
                return new
            if op_name(value) != "relax.nn.conv2d" or value.args[0] not in padded or value.attrs.data_layout != "NHWC":
                return value
            pad = padded[value.args[0]]
            top, bottom, left, right = plain(pad.attrs.pad_width)[2:6]
            own = plain(value.attrs.padding)
            attributes = {name: plain(getattr(value.attrs, name)) for name in ("strides", "dilation", "groups")}
            return R.nn.conv2d(
                pad.args[0],
                value.args[1],
                **attributes,
                padding=[own[0] + top, own[1] + left, own[2] + bottom, own[3] + right],
                data_layout="NHWC",
                kernel_layout=value.attrs.kernel_layout,
            )

        return update_function(mod, self.function, eliminate_dead(rewrite(mod[self.function], visit)))


def _pads_images_with_zeros(call: relax.Call) -> bool:
    widths = plain(call.attrs.pad_width)
    is_spatial = len(widths) == 8 and not any(widths[:2]) and not any(widths[6:]) and min(widths) >= 0
    return is_spatial and call.attrs.pad_mode == "constant" and float(call.attrs.pad_value) == 0
