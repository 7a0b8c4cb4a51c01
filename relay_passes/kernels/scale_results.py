"""Scales a product's result or gradient instead of a weight that changes every step."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax

from ..ir import Expr, eliminate_dead, made_by, op_name, rewrite, shape_of, update_function


@tvm.transform.module_pass(opt_level=0, name="ScaleResults")
@dataclass(frozen=True)
class ScaleResults:
    """Rewrite ``conv2d(x, W * s)`` to ``conv2d(x, W) * s``, where s scales output channels and W is named in ``live``.

    In, out: a dataflow function, channels last. ``live`` names the trained parameters. Batch norm folded into a trained
    weight would scale it every step; scaling the result is free in the product's epilogue. For a data gradient s scales
    dY, if that is smaller than W.
    """

    live: Collection[str]
    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        made: dict[relax.Var, Expr] = {}

        def visit(builder: relax.BlockBuilder, var: relax.Var, value: Expr) -> Expr:
            if op_name(value) == "relax.multiply":
                new = builder.emit(value, var.name)
                made[new] = value
                return new
            is_gradient = op_name(value) == "pock.conv2d_data_gradient"
            if not is_gradient and (op_name(value) != "relax.nn.conv2d" or value.attrs.kernel_layout != "HWIO"):
                return value
            x, weight = value.args
            scaled = made_by(made, weight)
            if scaled is None or not self._is_scaled_by_channel(scaled, shape_of(weight)):
                return value
            if not is_gradient:
                return builder.emit(relax.Call(value.op, [x, scaled.args[0]], value.attrs)) * scaled.args[1]
            if math.prod(shape_of(x)) >= math.prod(shape_of(weight)):
                return value
            return relax.Call(value.op, [builder.emit(x * scaled.args[1]), scaled.args[0]], value.attrs)

        return update_function(mod, self.function, eliminate_dead(rewrite(mod[self.function], visit)))

    def _is_scaled_by_channel(self, value: relax.Call, shape: tuple[int, ...]) -> bool:
        weight, scale = value.args
        return isinstance(weight, relax.Var) and weight.name in self.live and shape_of(scale) == shape[-1:]
