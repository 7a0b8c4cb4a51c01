"""Adds a function that evaluates a loss function alone."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import IRModule, relax

from ..analysis.batch_axis import WHOLE
from ..ir import eliminate_dead, rewrite, update_function
from .append_loss import LOSS
from .split_loss import contribution, rows_of, why_loss_whole

EVALUATE = "evaluate"
"""Name of the function, and before a dot of its parameters."""


@tvm.transform.module_pass(opt_level=0, name="EvaluateLoss")
@dataclass(frozen=True)
class EvaluateLoss:
    """Add a function ``evaluate`` that computes a loss function.

    In: a module with a loss function (:class:`AppendLoss`). Out: one more function, of the same outputs and targets,
    whose names begin with ``evaluate.``. Where a loss is a sum over samples, which need nothing of each other, the
    function takes one sample, and returns that sample's contribution to a batch's loss. Otherwise it takes the batch.
    """

    function: str = LOSS

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = _of_one_sample(mod[self.function])
        params = [relax.Var(f"{EVALUATE}.{param.name}", param.ty) for param in func.params]
        renamed = rewrite(func, params=params, env=dict(zip(func.params, params, strict=True)))
        return update_function(mod, EVALUATE, renamed.with_attr("global_symbol", EVALUATE))


def _of_one_sample(func: relax.Function) -> relax.Function:
    """Return the function of one sample, or the function itself."""
    if why_loss_whole(func):
        return func
    one = contribution(func, rows_of(eliminate_dead(func)))
    return func if any(param.name.endswith(WHOLE) for param in one.params) else one
