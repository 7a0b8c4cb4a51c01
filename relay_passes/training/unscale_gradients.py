"""Divides the loss and the gradients of a scaled loss by the scale."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import IRModule, relax
from tvm.relax import op as R

from ..ir import Expr, results_of, rewrite, scalar, update_function
from .scale_loss import SCALE


@tvm.transform.module_pass(opt_level=0, name="UnscaleGradients")
@dataclass(frozen=True)
class UnscaleGradients:
    """Divide the loss and the gradients by ``loss_scale``, exactly: it is a power of two.

    In: a function that :class:`ScaleLoss` and then :class:`Backward` made. Out: it returns the loss and the gradients
    as they are without a scale, in float32. A gradient that was beyond float16's range is infinite.
    """

    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        (scale,) = (param for param in func.params if param.name == SCALE)
        count = 1 + len(func.attrs["gradients"])

        def unscaled(builder: relax.BlockBuilder, body: Expr) -> Expr:
            fields = results_of(builder, body)
            inverse = builder.emit(R.divide(scalar(1, scale), scale))
            changed = [builder.emit(R.multiply(field, inverse)) for field in fields[:count]]
            return relax.Tuple([*changed, *fields[count:]])

        return update_function(mod, self.function, rewrite(func, result=unscaled))
