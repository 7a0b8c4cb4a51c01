"""Rewrites a network to run on a micro-batch."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import IRModule, relax

from ..analysis.batch_axis import BatchAxis, batch_axis_of
from ..errors import BatchError
from ..ir import (
    Expr,
    dtype_of,
    eliminate_dead,
    made_by,
    op_name,
    returned,
    rewrite,
    shape_of,
    substitute,
    update_function,
)
from ..operators.random import DRAWS, RANDOM

CUT = "cut_inputs"
"""Attribute that names the inputs of which each run takes one part."""


@tvm.transform.module_pass(opt_level=0, name="SplitBatch")
@dataclass(frozen=True)
class SplitBatch:
    """Rewrite a network from a batch to one of ``count`` equal micro-batches.

    In, out: a dataflow function with the attribute ``num_input``. Inputs with a row for each sample get ``count`` times
    fewer rows. The attribute ``cut_inputs`` names them, for :class:`AppendLoss` and :class:`ListCalls`. Random numbers
    are those of the whole batch: ``pock.random`` gets a row for each micro-batch (:class:`DrawNumbers`).

    Raises
    ------
    BatchError
        ``count`` does not divide the batch, or an operator mixes samples.
    """

    count: int
    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        samples = batch_axis_of(func, draws_parts=True)
        if samples.batch % self.count:
            raise BatchError(f"a batch of {samples.batch} cannot be cut into {self.count} equal micro-batches")
        why = _why_whole(func, samples)
        if why:
            raise BatchError(f"the network cannot run in micro-batches: {why}")
        env: dict[relax.Var, Expr] = {}
        params = list(func.params)
        for index, param in enumerate(params):
            if param in samples.inputs:
                rows, *rest = shape_of(param)
                part = relax.TensorType((rows // self.count, *rest), dtype_of(param))
                params[index] = env[param] = relax.Var(param.name, part)

        wholes: dict[relax.Var, relax.Var] = {}  # repeated values: the whole value and its part
        parts: dict[relax.Var, relax.Var] = {}

        def visit(builder: relax.BlockBuilder, var: relax.Var, value: Expr) -> Expr:
            if var not in samples.needs:
                return value
            own = {wholes[each]: parts[each] for each in samples.needs[var] if each in wholes}
            part = samples.on_part(var, substitute(value, own), self.count)
            if var in samples.batched:
                return part
            wholes[var], parts[var] = builder.emit(value, var.name), builder.emit(part, var.name)
            return wholes[var]

        new = eliminate_dead(rewrite(func, visit, params=params, env=env))
        cut = [param.name for param in func.params if param in samples.inputs or param.name == RANDOM]
        return update_function(mod, self.function, new.with_attr(CUT, cut))


def why_whole(func: relax.Function) -> str:
    """Return why a network cannot run on a part of its batch; empty if it can."""
    return _why_whole(func, batch_axis_of(func, draws_parts=True))


def _why_whole(func: relax.Function, samples: BatchAxis) -> str:
    mixed = next((value for value in samples.mixed.values() if not isinstance(value, relax.Tuple)), None)
    if mixed is not None and op_name(mixed) in DRAWS:
        return "its random numbers (dropout, noise) are drawn for all samples together"
    if mixed is not None:
        return f"'{op_name(mixed)}' needs several samples at once"
    if any(not _has_rows(result, samples) for result in returned(func)):
        return "a result has no row for each sample"
    return ""


def _has_rows(result: Expr, samples: BatchAxis) -> bool:
    """Return whether a result stacks the samples along its first axis."""
    share = made_by(samples.batched, result)
    return share is not None and share.axis == 0
