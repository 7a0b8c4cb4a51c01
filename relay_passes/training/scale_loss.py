"""Scales a loss, so that its gradients stay within the range of 16 bits."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import IRModule, relax
from tvm.relax import op as R

from ..ir import Expr, results_of, rewrite, update_function

SCALE = "loss_scale"
"""Name of the input by which the loss is multiplied."""


@tvm.transform.module_pass(opt_level=0, name="ScaleLoss")
@dataclass(frozen=True)
class ScaleLoss:
    """Multiply the loss by a further input, ``loss_scale``: float [], a power of two.

    In: a function that returns a loss first (:class:`AppendLoss`). After :class:`Backward`, :class:`UnscaleGradients`
    divides by it again. Gradients between keep digits that float16 would lose below 6e-8 (Micikevicius et al., Mixed
    Precision Training, ICLR 2018, section 3.2).
    """

    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        inputs = int(func.attrs["num_input"])
        first = func.ret_ty.fields[0] if isinstance(func.ret_ty, relax.TupleType) else func.ret_ty
        scale = relax.Var(SCALE, relax.TensorType((), str(first.dtype.dtype)))

        def scaled(builder: relax.BlockBuilder, body: Expr) -> Expr:
            loss, *further = results_of(builder, body)
            loss = builder.emit(R.multiply(loss, scale))
            return relax.Tuple([loss, *further]) if further else loss

        params = [*func.params[:inputs], scale, *func.params[inputs:]]
        func = rewrite(func, params=params, result=scaled).with_attr("num_input", inputs + 1)
        return update_function(mod, self.function, func)
