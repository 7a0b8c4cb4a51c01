"""Fuses optimizer updates with the kernels that compute their gradients."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax, s_tir, tirx

from schedules.kernels import comes_scheduled
from schedules.kernels.conv2d import WEIGHT_GRADIENT
from schedules.kernels.indexing import EMBEDDING_GRADIENT, first_positions, gathered_gradient
from schedules.kernels.joint_update import gathered_update, product_update
from schedules.kernels.matmul import MATMUL
from schedules.kernels.update import gradient_of
from schedules.loops import is_reduction, split_by_kind

from ..analysis.aliasing import Aliasing
from ..ir import (
    Expr,
    dtype_of,
    eliminate_dead,
    is_float,
    made_by,
    op_name,
    rewrite,
    shape_of,
    update_function,
    used_vars,
)
from .legalization import call_kernel

PRODUCT_UPDATES = "product_updates"


@tvm.transform.module_pass(opt_level=0, name="FuseUpdates")
@dataclass(frozen=True)
class FuseUpdates:
    """Join updates with what computes their gradients, which are then never in memory.

    A product (of matrices, or a convolution's weight gradient) updates the weight itself, tile by tile: the weight and
    its states move while it computes. The gradient of an embedding shrinks to the rows that were read.

    In, out: a dataflow function of ``call_tir`` and ``call_tir_inplace``, with the names of the weights that products
    update in its attribute :data:`PRODUCT_UPDATES`: their gradients cannot be checked, but the two factors can. A
    gradient that anything else reads stays, and so does a product of what is no temporary in float32.
    """

    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        found = _fusible(mod, func)
        if not found:
            return mod
        kernels = relax.BlockBuilder(mod)
        joint: dict[tuple[tvm.ir.GlobalVar, tvm.ir.GlobalVar], tvm.ir.GlobalVar] = {}
        made: dict[relax.Var, relax.Call] = {}
        products: list[str] = []

        def visit(builder: relax.BlockBuilder, var: relax.Var, value: Expr) -> Expr:
            at = found.get(var)
            if at is None:
                return value
            update, fields = value.args[0], list(value.args[1].fields)
            source = _source(made, fields[at])
            assert source is not None
            kernel, operands = source.args[0], list(source.args[1].fields)
            if _is_embedding(mod[kernel]):
                operands = _gathered(builder, kernels, operands, shape_of(source)[0])
                func = gathered_update(mod[update], at, shape_of(operands[1])[0])
            else:
                func = product_update(mod[kernel], mod[update], at)
                products.append(fields[0].name)
            if (kernel, update) not in joint:
                joint[kernel, update] = kernels.add_func(func, f"{update.name_hint}_{kernel.name_hint}")
            call = joint_call(joint[kernel, update], value, at, operands)
            return builder.emit(call, fields[at].name)  # messages name a kernel after what it computes

        body = eliminate_dead(rewrite(func, visit, made=made))
        names = [*func.attrs.get(PRODUCT_UPDATES, []), *products]
        return update_function(kernels.get(), self.function, body.with_attr(PRODUCT_UPDATES, names))


def joint_call(
    kernel: tvm.ir.GlobalVar,
    update: relax.Call,
    at: int,
    operands: Sequence[Expr],
    new: Sequence[relax.TensorType] = (),
) -> relax.Call:
    """Return the call of a joint kernel: the update's operands but the gradient, which is number ``at``, then
    ``operands``. It returns what it writes in place, then results of the types ``new``."""
    fields = list(update.args[1].fields)
    every = relax.Tuple([*fields[:at], *fields[at + 1 :], *operands])
    written = [index - (index > at) for index in map(int, update.attrs.inplace_indices)]
    types = list(update.ty.fields) if isinstance(update.ty, relax.TupleType) else [update.ty]
    return relax.op.call_tir_inplace(kernel, every, [*written, *(-1 for _ in new)], [*types, *new])


def _gathered(
    builder: relax.BlockBuilder, kernels: relax.BlockBuilder, operands: Sequence[Expr], rows: int
) -> list[Expr]:
    """Emit the rows of an embedding's gradient that are not zero. Returns the place of each row among them, and them;
    ``operands`` are the indices and the gradient of what was read."""
    indices, grad = operands
    first = builder.emit(call_kernel(kernels, first_positions, indices, rows=rows))
    return [first, builder.emit(call_kernel(kernels, gathered_gradient, indices, grad, first))]


def _fusible(mod: IRModule, func: relax.Function) -> dict[relax.Var, int]:
    """Return the position of the gradient in each fusible update, by the variable that the update is bound to."""
    aliasing = Aliasing(func)
    readers = Counter(var for binding in aliasing.bindings for var in used_vars(binding.value))
    found = {}
    for binding in aliasing.bindings:
        at = gradient_of(mod[binding.value.args[0]]) if op_name(binding.value) == "relax.call_tir_inplace" else None
        if at is None:
            continue
        gradient = binding.value.args[1].fields[at]
        source = _source(aliasing.values, gradient, readers)
        if source is None or dtype_of(source) != dtype_of(gradient):
            continue
        kernel, operands = mod[source.args[0]], source.args[1].fields
        if _is_embedding(kernel):
            are_few = WORTH * (shape_of(operands[0])[0] + 1) <= shape_of(source)[0]
            is_fusible = are_few and shape_of(source) == shape_of(gradient)  # indices along several axes are one
        else:
            is_fusible = _is_product(kernel) and are_checked(source, aliasing, shape_of(gradient))
        if is_fusible:
            found[binding.var] = at
    return found


def are_checked(product: relax.Call, aliasing: Aliasing, gradient: Sequence[int]) -> bool:
    """Return whether the factors of a product are temporaries in float32, which can be checked instead of its result,
    of the shape ``gradient``. Those of a convolution must not be much larger than it."""
    factors = [each for each in product.args[1].fields if is_float(each)]
    if len(factors) != 2 or not all(dtype_of(each) == "float32" and aliasing.buffers(each) for each in factors):
        return False
    most = MOST_CHECKED * math.prod(gradient)
    return len(gradient) == 2 or sum(math.prod(shape_of(each)) for each in factors) <= most


MOST_CHECKED = 2
"""Largest factors of a convolution's weight gradient, relative to it: a step checks them, and not the gradient."""
WORTH = 2
"""Rows of an embedding, relative to those that a step reads, from which the gradient of these alone is worth its
kernels."""


def _source(
    made: Mapping[relax.Var, Expr], expr: Expr, readers: Mapping[relax.Var, int] | None = None
) -> relax.Call | None:
    """Return the call of a kernel whose one result ``expr`` is, or a reshape of it; None if ``readers`` counts any more
    of it."""
    while (value := made_by(made, expr)) is not None and (readers is None or readers[expr] == 1):
        if op_name(value) == "relax.call_tir":
            return value if isinstance(expr.ty, relax.TensorType) else None
        if op_name(value) != "relax.reshape":
            return None
        expr = value.args[0]
    return None


def _is_embedding(func: tirx.PrimFunc) -> bool:
    return func.body.block.name_hint == EMBEDDING_GRADIENT


def _is_product(func: tirx.PrimFunc) -> bool:
    """Return whether a kernel is a product of rank two, or a convolution's weight gradient in one part, with
    element-wise steps alone behind it."""
    if comes_scheduled(func):
        return False
    sch = s_tir.Schedule(IRModule({"main": func}))
    blocks = sch.get_child_blocks(sch.get_sblock("root"))
    rules = [sch.get(block).annotations.get("schedule_rule") for block in blocks]
    products = [at for at, rule in enumerate(rules) if rule in (MATMUL, WEIGHT_GRADIENT)]
    if len(products) != 1 or (rules[products[0]] == WEIGHT_GRADIENT and products[0]):
        return False  # none, or several, or one that pads its operand
    spatial, _ = split_by_kind(sch, blocks[products[0]])
    rank, behind = len(spatial), blocks[products[0] + 1 :]
    return not any(is_reduction(sch, block) or len(sch.get_loops(block)) != rank for block in behind)
