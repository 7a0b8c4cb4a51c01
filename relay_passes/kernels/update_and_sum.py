"""Joins weight gradients of convolutions with the updates of the weights, and with gradients of batch norms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import tvm
from tvm import IRModule, relax, s_tir, tirx

from schedules.kernels import comes_scheduled
from schedules.kernels.conv2d import WEIGHT_GRADIENT
from schedules.kernels.joint_update import product_update
from schedules.kernels.reduction import CHANNEL_SUM
from schedules.kernels.update import gradient_of
from schedules.loops import loads_of

from ..analysis.aliasing import Aliasing
from ..ir import eliminate_dead, made_by, op_name, shape_of, update_function, used_vars
from .fuse_updates import PRODUCT_UPDATES, are_checked, joint_call


@tvm.transform.module_pass(opt_level=0, name="UpdateAndSum")
@dataclass(frozen=True)
class UpdateAndSum:
    """Join a convolution's weight gradient with the weight's update and with the gradient of a scale behind it.

    A batch norm with frozen statistics scales the convolution's result, ``y = s conv(x, W)``. Both gradients come from
    one product U, that of x and dy: s U is the weight's, and the sum of U W over all axes but the last that of s. The
    joint kernel computes U tile by tile, adds U W to the sums and updates W: U is never in memory, and W is read and
    written once.

    In, out: a dataflow function of ``call_tir`` and ``call_tir_inplace``, with the names of the weights in its
    attribute :data:`PRODUCT_UPDATES`. Joint kernels return the sums beside what they write in place. See
    :class:`FuseUpdates`, which takes the gradients that updates alone read.
    """

    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        found = _found(mod, func)
        if not found:
            return mod
        kernels = relax.BlockBuilder(mod)
        joint: dict[tuple[tvm.ir.GlobalVar, tvm.ir.GlobalVar], tvm.ir.GlobalVar] = {}
        bindings: list[relax.VarBinding] = []
        replaced: dict[relax.Var, relax.Expr] = {}
        for binding in Aliasing(func).bindings:
            place = found.get(binding.var)
            if place is not None:
                gradient, update = binding.value.args[0], place.update.value.args[0]
                if (gradient, update) not in joint:
                    both = product_update(mod[gradient], mod[update], place.position, sums=True)
                    joint[gradient, update] = kernels.add_func(both, f"{update.name_hint}_{gradient.name_hint}")
                operands = list(binding.value.args[1].fields)
                kernel, new = joint[gradient, update], [place.sums.ty]
                call = kernels.normalize(joint_call(kernel, place.update.value, place.position, operands, new))
                var = relax.DataflowVar(binding.var.name, call.ty)
                bindings.append(relax.VarBinding(var, call))
                fields = [relax.TupleGetItem(var, at) for at in range(len(call.ty.fields))]
                *written, sums = fields
                replaced |= {place.update.var: _results(written, bindings, binding.var.name), place.sums: sums}
            bindings.append(relax.VarBinding(binding.var, replaced.get(binding.var, binding.value)))
        body = relax.SeqExpr([relax.DataflowBlock(bindings)], func.body.body)
        names = [
            *func.attrs.get(PRODUCT_UPDATES, []),
            *(each.update.value.args[1].fields[0].name for each in found.values()),
        ]
        new = relax.Function(func.params, body, func.ret_ty, func.is_pure, func.attrs)
        return update_function(kernels.get(), self.function, eliminate_dead(new).with_attr(PRODUCT_UPDATES, names))


class _Place(NamedTuple):
    """The readers of a weight gradient."""

    update: relax.VarBinding
    position: int
    """Which operand of the update the gradient is."""
    sums: relax.Var
    """The gradient of the scale."""


def _results(written: Sequence[relax.Expr], bindings: list[relax.VarBinding], name: str) -> relax.Expr:
    """Return what an update returned: one value, or a tuple of several, which are bound first."""
    if len(written) == 1:
        return written[0]
    fields = []
    for each in written:
        fields.append(relax.DataflowVar(name, each.tuple_value.ty.fields[each.index]))
        bindings.append(relax.VarBinding(fields[-1], each))
    return relax.Tuple(fields)


def _found(mod: IRModule, func: relax.Function) -> dict[relax.Var, _Place]:
    """Return what reads each weight gradient that can be joined with it."""
    aliasing = Aliasing(func)
    order = {binding.var: index for index, binding in enumerate(aliasing.bindings)}
    readers: dict[relax.Var, list[relax.VarBinding]] = {}
    for binding in aliasing.bindings:
        for var in dict.fromkeys(used_vars(binding.value)):
            readers.setdefault(var, []).append(binding)
    found = {}
    for binding in aliasing.bindings:
        at = gradient_of(mod[binding.value.args[0]]) if op_name(binding.value) == "relax.call_tir_inplace" else None
        if at is None:
            continue
        fields = list(binding.value.args[1].fields)
        weight, gradient = fields[0], fields[at]
        source = made_by(aliasing.values, gradient)
        if op_name(source) != "relax.call_tir" or not _is_weight_gradient(mod[source.args[0]]):
            continue
        sums = _sums(mod, [each for each in readers[gradient] if each is not binding], readers, {gradient, weight})
        is_early = all(order.get(var, -1) < order[gradient] for var in used_vars(binding.value) if var != gradient)
        if (
            sums is not None
            and is_early
            and shape_of(weight) == shape_of(gradient)
            and are_checked(source, aliasing, shape_of(gradient))
            and not _reads(weight, sums, aliasing.bindings, order)
        ):
            found[gradient] = _Place(binding, at, sums)
    return found


def _sums(
    mod: IRModule,
    others: Sequence[relax.VarBinding],
    readers: Mapping[relax.Var, Sequence[relax.VarBinding]],
    factors: set[relax.Var],
) -> relax.Var | None:
    """Return the sum for each channel of the products of two ``factors``, if it is all that ``others`` are for: one
    kernel, or one that sums in parts, and one that adds the parts."""
    if len(others) != 1 or op_name(others[0].value) != "relax.call_tir":
        return None
    kernel, operands = others[0].value.args[0], list(others[0].value.args[1].fields)
    blocks = _blocks(mod[kernel])
    if set(operands) != factors or len(blocks) != 2 or not _multiplies(blocks[0]):
        return None
    if _adds_rows(blocks[1]):
        return others[0].var
    behind = readers.get(others[0].var, ())
    if blocks[1].annotations.get("schedule_rule") != CHANNEL_SUM or len(behind) != 1:
        return None
    (total,) = behind
    adding = _blocks(mod[total.value.args[0]]) if op_name(total.value) == "relax.call_tir" else []
    return total.var if len(adding) == 1 and _adds_rows(adding[0]) else None


def _reads(
    weight: relax.Var, start: relax.Var, bindings: Sequence[relax.VarBinding], order: Mapping[relax.Var, int]
) -> bool:
    """Return whether anything that needs ``start`` reads the weight."""
    needing = {start}
    for binding in bindings[order[start] + 1 :]:
        used = set(used_vars(binding.value))
        if used & needing:
            needing.add(binding.var)
            if weight in used:
                return True
    return False


def _is_weight_gradient(func: tirx.PrimFunc) -> bool:
    """Return whether a kernel is a convolution's weight gradient in one part, and no more."""
    blocks = _blocks(func)
    return (
        len(blocks) == 1
        and blocks[0].annotations.get("schedule_rule") == WEIGHT_GRADIENT
        and len(func.params[-1].shape) == len(func.params[0].shape)
    )


def _multiplies(block: s_tir.SBlock) -> bool:
    """Return whether a block multiplies two buffers element by element."""
    at, value = [each.var for each in block.iter_vars], block.body.value
    loads = loads_of(value)
    is_product = isinstance(value, tirx.Mul) and [value.a, value.b] == loads
    return is_product and all(_same(list(load.indices), at) for load in loads)


def _adds_rows(block: s_tir.SBlock) -> bool:
    """Return whether a block adds up a buffer along all axes but the last."""
    value, places = block.body.value, block.body.indices
    if not isinstance(value, tirx.Add) or not isinstance(value.b, tvm.ir.TensorLoad) or len(places) != 1:
        return False
    read = list(value.b.indices)
    return read[-1].same_as(places[0]) and len(read) == len(block.iter_vars)


def _same(left: Sequence[relax.Expr], right: Sequence[relax.Expr]) -> bool:
    return len(left) == len(right) and all(a.same_as(b) for a, b in zip(left, right, strict=True))


def _blocks(func: tirx.PrimFunc) -> list[s_tir.SBlock]:
    """Return the blocks of a kernel; none if it comes scheduled."""
    if comes_scheduled(func):
        return []
    sch = s_tir.Schedule(IRModule({"main": func}))
    return [sch.get(block) for block in sch.get_child_blocks(sch.get_sblock("root"))]
