"""Rewrites every product of a network as a matrix product or a two-dimensional convolution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax
from tvm.relax import op as R

from ..ir import (
    Expr,
    bindings_of,
    constant_value,
    eliminate_dead,
    is_kept,
    op_name,
    rewrite,
    shape_of,
    update_function,
    used_vars,
)
from ..operators.registry import plain
from ..operators.training import matmul


@tvm.transform.module_pass(opt_level=0, name="UnifyProducts")
@dataclass(frozen=True)
class UnifyProducts:
    """Rewrite ``relax.matmul`` as ``pock.matmul`` and ``nn.conv1d`` as ``nn.conv2d`` of height 1.

    In, out: a dataflow function. A transpose of an operand's last two axes becomes a flag of the product. A parameter's
    transpose stays, since the parameter can be stored transposed (:class:`StorePermuted`), unless it is in ``live``. A
    constant factor of an operand that only the product reads moves to the result, as attention's scale: there it joins
    an epilogue, and costs nothing in the gradients either.
    """

    live: Collection[str] = ()
    """Parameters that steps change: a transpose that :class:`StorePermuted` left would run each step (tied weights)."""
    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        made: dict[relax.Var, Expr] = {}
        scaled: dict[relax.Var, tuple[Expr, Expr]] = {}
        reads = Counter(var for binding in bindings_of(func) for var in used_vars(binding.value))
        parameters = {param for param in func.params if param.name not in self.live}

        def untransposed(operand: Expr) -> tuple[Expr, bool]:
            value = made.get(operand) if isinstance(operand, relax.Var) else None
            if value is not None and value.args[0] not in parameters and _swaps_last_two(value):
                return value.args[0], True
            return operand, False

        def visit(builder: relax.BlockBuilder, var: relax.Var, value: Expr) -> Expr:
            if op_name(value) == "relax.permute_dims":
                new = builder.emit(value, var.name)
                made[new] = value
                return new
            factors = _factor_and_tensor(value)
            if factors is not None and reads[var] == 1 and not is_kept(var):
                new = builder.emit(value, var.name)
                scaled[new] = factors
                return new
            if (
                op_name(value) == "relax.nn.conv1d"
                and value.attrs.data_layout == "NCW"
                and value.attrs.kernel_layout == "OIW"
            ):
                return _as_conv2d(builder, value)
            if op_name(value) not in ("relax.matmul", "pock.matmul"):
                return value
            a, b = value.args
            if min(len(shape_of(a)), len(shape_of(b))) < 2:
                return _with_vectors(builder, a, b)
            flags = (
                [bool(value.attrs[name]) for name in ("transpose_a", "transpose_b")]
                if op_name(value) == "pock.matmul"
                else [False] * 2
            )
            moved_factors = [scaled[operand][0] for operand in (a, b) if operand in scaled]
            (a, swap_a), (b, swap_b) = (untransposed(scaled.get(operand, (None, operand))[1]) for operand in (a, b))
            product: Expr = matmul(a, b, transpose_a=flags[0] ^ swap_a, transpose_b=flags[1] ^ swap_b)
            for factor in moved_factors:
                product = R.multiply(builder.emit(product), factor)
            return product

        return update_function(mod, self.function, eliminate_dead(rewrite(func, visit)))


def _factor_and_tensor(value: Expr) -> tuple[Expr, Expr] | None:
    """Split a multiplication by a one-element constant into (constant, tensor); None otherwise."""
    if op_name(value) != "relax.multiply":
        return None
    for number, tensor in (value.args, value.args[::-1]):
        known = constant_value(number)
        if (
            known is not None
            and known.size == 1
            and known.ndim <= len(shape_of(tensor))
            and isinstance(tensor, relax.Var)
        ):
            return number, tensor
    return None


def _swaps_last_two(value: relax.Call) -> bool:
    rank = len(shape_of(value.args[0]))
    axes = plain(value.attrs.axes)
    axes = list(reversed(range(rank))) if axes is None else [axis % rank for axis in axes]
    return rank >= 2 and axes == [*range(rank - 2), rank - 1, rank - 2]


def _with_vectors(builder: relax.BlockBuilder, a: Expr, b: Expr) -> Expr:
    """Multiply with vectors: a row on the left, a column on the right. The result lacks the vector's axis."""
    shape_a, shape_b = shape_of(a), shape_of(b)
    batch = shape_a[:-2] or shape_b[:-2]
    result = (*batch, *(shape_a[-2:-1] if len(shape_a) > 1 else ()), *(shape_b[-1:] if len(shape_b) > 1 else ()))
    a = a if len(shape_a) > 1 else builder.emit(R.reshape(a, (1, shape_a[0])))
    b = b if len(shape_b) > 1 else builder.emit(R.reshape(b, (shape_b[0], 1)))
    return R.reshape(builder.emit(matmul(a, b, transpose_a=False, transpose_b=False)), result)


def _as_conv2d(builder: relax.BlockBuilder, call: relax.Call) -> Expr:
    x, weight = call.args
    (stride,), (dilation,), padding = (plain(getattr(call.attrs, name)) for name in ("strides", "dilation", "padding"))
    left, right = padding if len(padding) == 2 else padding * 2
    image = builder.emit(R.expand_dims(x, 2))
    kernel = builder.emit(R.expand_dims(weight, 2))
    groups = int(call.attrs.groups)
    y = builder.emit(R.nn.conv2d(image, kernel, [1, stride], [0, left, 0, right], [1, dilation], groups))
    return R.squeeze(y, [2])
