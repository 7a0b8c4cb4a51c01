"""Accumulates gradients over the steps that share one update."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import IRModule

from ..ir import Expr
from ..ir.append import GRADIENT_SUM, InPlaceWriter


@tvm.transform.module_pass(opt_level=0, name="AccumulateGradients")
@dataclass(frozen=True)
class AccumulateGradients:
    """Turn a function that returns loss and gradients into one that adds the gradients to running sums and returns the
    loss.

    The sums are parameters named ``gradient_sum.<parameter>``; :class:`AppendUpdate` with ``accumulated`` reads and
    clears them.
    """

    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        def add(writer: InPlaceWriter, grads: dict[str, Expr]) -> None:
            for name, grad in grads.items():
                writer.assign(writer.state(GRADIENT_SUM, name, grad.ty), grad, accumulate=True)

        return InPlaceWriter(mod, self.function).append(add)
