"""Rewrites a loss function to run on a micro-batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import tvm
from tvm import IRModule, relax
from tvm.relax import op as R

from ..analysis.batch_axis import WHOLE, BatchAxis, batch_axis_of
from ..canonical.split_batch import CUT
from ..errors import BatchError
from ..ir import (
    Constant,
    Expr,
    assemble,
    bindings_of,
    dtype_of,
    eliminate_dead,
    is_float,
    normalized_axes,
    op_name,
    returned,
    scalar,
    shape_of,
    substitute,
    update_function,
    used_vars,
)
from ..operators.record import Kind, kind_of
from ..operators.registry import plain
from .append_loss import LOSS


@tvm.transform.module_pass(opt_level=0, name="SplitLoss")
@dataclass(frozen=True)
class SplitLoss:
    """Rewrite a loss function from a batch to one of ``count`` equal micro-batches.

    In: a dataflow function of outputs, then targets, counted by the attribute ``num_target``. Out: the same of a part
    of each output, and of each target with a row for each sample. It returns the part's contribution to the batch's
    loss; the contributions add up to it. The attribute ``cut_inputs`` names the targets that are parts.

    Samples may meet in means and sums alone, of which the loss is a linear function. Factors and divisors may depend on
    the targets of the whole batch, as the number of labels that count does: each part computes them from the whole
    targets, which are further parameters, named ``<target> (whole)``.

    Raises
    ------
    BatchError
        The loss is something else. The message names the operator that needs several samples.
    """

    count: int
    function: str = LOSS

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        return update_function(mod, self.function, contribution(mod[self.function], self.count))


def contribution(func: relax.Function, count: int) -> relax.Function:
    """Return the function of :class:`SplitLoss`. Errors: see there."""
    func = eliminate_dead(func)
    roles = _Roles.of(func)
    why = roles.why_whole(func)
    if why:
        raise BatchError(f"the loss function cannot run in micro-batches: {why}")
    return _drop_unread(_split(func, roles, count))


def rows_of(func: relax.Function) -> int:
    """Return the number of rows of a loss function's outputs: of the first that it reads."""
    outputs, _ = _outputs_and_targets(func)
    return next((shape_of(each)[0] for each in outputs if each in _read(func) and shape_of(each)), 1)


def why_loss_whole(func: relax.Function) -> str:
    """Return why a loss function cannot run on a part of its batch; empty if it can."""
    func = eliminate_dead(func)
    return _Roles.of(func).why_whole(func)


@dataclass
class _Roles:
    """Values of a loss function by how they depend on a part of the batch."""

    samples: BatchAxis
    whole: set[relax.Var]
    """Values that depend on targets and constants alone."""
    linear: dict[relax.Var, Collection[relax.Var]] = field(default_factory=dict)
    """Sums of contributions of the parts, with the operands that are parts or contributions. The others are whole."""
    mixing: Expr | None = None
    """The first value that is neither."""

    @classmethod
    def of(cls, func: relax.Function) -> _Roles:
        _, targets = _outputs_and_targets(func)
        roles = cls(batch_axis_of(func, rows_of(func)), set(targets))
        for binding in bindings_of(func):
            var, value = binding.var, binding.value
            if all(each in roles.whole for each in used_vars(value)):
                roles.whole.add(var)
            if var not in roles.samples.mixed:
                continue
            found = roles._parts_of(value)
            if found is not None:
                roles.linear[var] = found
            elif var not in roles.whole and roles.mixing is None:
                roles.mixing = value
        return roles

    def why_whole(self, func: relax.Function) -> str:
        """Return why the loss is no sum of contributions; empty if it is."""
        outputs, _ = _outputs_and_targets(func)
        shared = [each for each in outputs if each in _read(func) and each not in self.samples.inputs]
        if shared:
            return f"it reads '{shared[0].name}' {list(shape_of(shared[0]))}, which has no row for each sample"
        if self.mixing is not None:
            return f"its '{op_name(self.mixing)}' needs several samples at once"
        if returned(func)[0] not in self.linear:
            return "it is no mean or sum over the samples"
        return ""

    def _parts_of(self, value: Expr) -> Collection[relax.Var] | None:
        """Return the operands that are parts or contributions, if a value is a linear function of these."""
        if isinstance(value, relax.Var):
            return [value] if value in self.linear else None
        if not isinstance(value, relax.Call):
            return None
        first, name = value.args[0], op_name(value)
        if name in ("relax.mean", "relax.sum"):
            return [first] if self._is_linear(first) or self._reduces_batch(value) else None
        if name == "relax.negative" or kind_of(value) is Kind.RESHAPE or (name == "relax.astype" and is_float(value)):
            return [first] if self._is_linear(first) else None
        if name in ("relax.add", "relax.subtract"):
            own = [each for each in value.args if self._is_linear(each)]
            are_known = all(self._is_linear(each) or self._is_whole(each) for each in value.args)
            return own if own and are_known and is_float(value) else None
        if name == "relax.divide":
            return [first] if self._is_linear(first) and self._is_whole(value.args[1]) else None
        if name == "relax.multiply":
            linear = [each for each in value.args if self._is_linear(each)]
            own = sorted(linear, key=lambda each: each in self.whole)[:1]
            others = [each for each in value.args if not any(each.same_as(one) for one in own)]
            return own if own and len(others) == 1 and self._is_whole(others[0]) else None
        return None

    def _is_linear(self, x: Expr) -> bool:
        return isinstance(x, relax.Var) and x in self.linear

    def _is_whole(self, x: Expr) -> bool:
        return isinstance(x, Constant) or (isinstance(x, relax.Var) and x in self.whole)

    def _reduces_batch(self, call: relax.Call) -> bool:
        """Whether a reduction sums over the batch axis of a value that is computed for each sample."""
        share = self.samples.batched.get(call.args[0]) if isinstance(call.args[0], relax.Var) else None
        return share is not None and share.axis in normalized_axes(plain(call.attrs.axis), len(shape_of(call.args[0])))


def _outputs_and_targets(func: relax.Function) -> tuple[list[relax.Var], list[relax.Var]]:
    first = len(func.params) - int(func.attrs["num_target"])
    return list(func.params[:first]), list(func.params[first:])


def _read(func: relax.Function) -> set[relax.Var]:
    return {var for binding in bindings_of(func) for var in used_vars(binding.value)}


def _split(func: relax.Function, roles: _Roles, count: int) -> relax.Function:
    """Build the function of one part."""
    samples, (outputs, targets) = roles.samples, _outputs_and_targets(func)
    parts: dict[relax.Var, Expr] = {}
    wholes: dict[relax.Var, Expr] = {}
    params = []
    for param in func.params:
        if param in samples.inputs:
            rows, *rest = shape_of(param)
            part = relax.TensorType((rows // count, *rest), dtype_of(param))
            parts[param] = relax.Var(param.name, part)
        params.append(parts.get(param, param))
    for target in targets:
        wholes[target] = target
        if target in samples.inputs:
            wholes[target] = relax.Var(target.name + WHOLE, target.ty)
            params.append(wholes[target])
    builder = relax.BlockBuilder()
    builder.begin_scope(params)
    builder._begin_dataflow_block()

    def emit(value: Expr, name: str) -> Expr:
        is_leaf = isinstance(value, relax.Var | Constant | relax.Tuple)
        return value if is_leaf else builder.emit(value, name)

    for binding in bindings_of(func):
        var, value = binding.var, binding.value
        if var in roles.whole:
            wholes[var] = emit(substitute(value, wholes), var.name)
        if var in roles.linear:
            own = {each: parts[each] for each in roles.linear[var]}
            parts[var] = emit(_scaled(builder, value, own, wholes, samples, count), var.name)
        elif var in samples.needs:
            own = {each: parts[each] for each in samples.needs[var]}
            parts[var] = emit(samples.on_part(var, substitute(value, {**wholes, **own}), count), var.name)
    body = parts[returned(func)[0]]
    bindings = list(builder._end_block().bindings)
    builder.end_scope()
    cut = [target.name for target in targets if target in samples.inputs]
    added = len(params) - len(outputs)
    attrs = dict(func.attrs.items()) | {"num_input": len(params), "num_target": added, CUT: cut}
    return assemble(params, bindings, body, attrs)


def _scaled(
    builder: relax.BlockBuilder,
    value: Expr,
    own: Mapping[relax.Var, Expr],
    wholes: Mapping[relax.Var, Expr],
    samples: BatchAxis,
    count: int,
) -> Expr:
    """Return a value's contribution: a mean of a part, and what is added as a whole, count by one part in ``count``."""
    name = op_name(value)
    if name in ("relax.add", "relax.subtract"):
        args = [
            own[each]
            if isinstance(each, relax.Var) and each in own
            else builder.emit(R.multiply(substitute(each, wholes), scalar(1 / count, each)))
            for each in value.args
        ]
        return relax.Call(value.op, args, value.attrs)
    new = substitute(value, {**wholes, **own})
    if name == "relax.mean" and value.args[0] in samples.batched:
        return R.multiply(builder.emit(new), scalar(1 / count, value))
    return new


def _drop_unread(func: relax.Function) -> relax.Function:
    """Drop what nothing reads: values, and whole targets."""
    func = eliminate_dead(func)
    read = _read(func)
    params = [each for each in func.params if each in read or not each.name.endswith(WHOLE)]
    dropped = len(func.params) - len(params)
    counts = {name: int(func.attrs[name]) - dropped for name in ("num_input", "num_target")}
    return assemble(params, bindings_of(func), func.body.body, dict(func.attrs.items()) | counts)
