"""Arithmetic, comparisons, logic and casts, element by element."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import numpy as np
import onnx
from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, constant_value, dtype_of, is_float, scalar

from ..remainders import signed_as_dividend, signed_as_divisor
from .registry import Node, converter, refuse

UNARY: dict[str, Callable[[Expr], Expr]] = {
    "Abs": R.abs,
    "Acos": R.acos,
    "Acosh": R.acosh,
    "Asin": R.asin,
    "Asinh": R.asinh,
    "Atan": R.atan,
    "Atanh": R.atanh,
    "BitwiseNot": R.bitwise_not,
    "Ceil": R.ceil,
    "Cos": R.cos,
    "Cosh": R.cosh,
    "Erf": R.erf,
    "Exp": R.exp,
    "Floor": R.floor,
    "Identity": lambda x: x,
    "IsNaN": R.isnan,
    "Log": R.log,
    "Neg": R.negative,
    "Not": R.logical_not,
    "Round": R.round,
    "Sigmoid": R.sigmoid,
    "Sign": R.sign,
    "Sin": R.sin,
    "Sinh": R.sinh,
    "Sqrt": R.sqrt,
    "Tan": R.tan,
    "Tanh": R.tanh,
}
BINARY: dict[str, Callable[[Expr, Expr], Expr]] = {
    "Add": R.add,
    "And": R.logical_and,
    "BitwiseAnd": R.bitwise_and,
    "BitwiseOr": R.bitwise_or,
    "BitwiseXor": R.bitwise_xor,
    "Div": R.divide,
    "Equal": R.equal,
    "Greater": R.greater,
    "GreaterOrEqual": R.greater_equal,
    "Less": R.less,
    "LessOrEqual": R.less_equal,
    "Mul": R.multiply,
    "Or": R.logical_or,
    "Sub": R.subtract,
    "Xor": R.logical_xor,
}


def _unary(operator: Callable[[Expr], Expr]) -> Callable[..., Expr]:
    def convert(node: Node, x: Expr) -> Expr:
        return operator(x)

    return convert


def _binary(operator: Callable[[Expr, Expr], Expr]) -> Callable[..., Expr]:
    def convert(node: Node, a: Expr, b: Expr) -> Expr:
        if node.version < 7:  # an explicit attribute allowed broadcasting from another axis than the last
            refuse(any(attribute.name in ("axis", "broadcast") for attribute in node.proto.attribute),
                   "it broadcasts as before operator set 7; convert the file with onnx.version_converter")  # fmt: skip
        return operator(a, b)

    return convert


for _name, _operator in UNARY.items():
    converter(_name)(_unary(_operator))
for _name, _combine in BINARY.items():
    converter(_name)(_binary(_combine))


@converter("Reciprocal")
def reciprocal(node: Node, x: Expr) -> Expr:
    """``1 / x``."""
    return R.divide(scalar(1, x), x)


@converter("Sum", "Mean", "Max", "Min")
def variadic(node: Node, *data_0: Expr) -> Expr:
    """Convert an operator with any number of operands, which broadcast."""
    operators = {"Sum": R.add, "Mean": R.add, "Max": R.maximum, "Min": R.minimum}
    y = reduce(lambda a, b: node.emit(operators[node.schema.name](a, b)), data_0)
    return R.divide(y, scalar(len(data_0), y)) if node.schema.name == "Mean" else y


@converter("Pow")
def power(node: Node, x: Expr, y: Expr) -> Expr:
    """``x ^ y``, in the type of ``x``."""
    if not is_float(x):  # exact up to 53 bits
        powers = node.emit(R.power(R.astype(x, "float64"), R.astype(y, "float64")))
        return R.astype(powers, dtype_of(x))
    exponent = constant_value(y)
    if exponent is not None:
        y = relax.const(exponent.astype(dtype_of(x)), dtype_of(x))
        if exponent.size == 1 and float(exponent.reshape(())) == 2 and exponent.ndim == 0:
            return R.multiply(x, x)
    return R.power(x, y if dtype_of(y) == dtype_of(x) else R.astype(y, dtype_of(x)))


@converter("Mod")
def modulus(node: Node, a: Expr, b: Expr, *, fmod: int) -> Expr:
    """Compute the remainder with the divisor's sign, or with ``fmod`` the dividend's."""
    return (signed_as_dividend if fmod else signed_as_divisor)(node.emit, a, b)


@converter("BitShift")
def bit_shift(node: Node, x: Expr, y: Expr, *, direction: str) -> Expr:
    """Shift by a number of bits. From the type's width on, and for negative numbers, all bits are shifted out: machines
    differ there."""
    dtype, width = dtype_of(x), np.dtype(dtype_of(x)).itemsize * 8
    inside = node.emit(R.less(y, scalar(width, y)))
    if dtype.startswith("int"):
        inside = node.emit(R.logical_and(inside, R.greater_equal(y, scalar(0, y))))
    bits = node.emit(R.where(inside, y, scalar(0, y)))
    if direction == "LEFT":
        return R.where(inside, R.left_shift(x, bits), scalar(0, x))
    gone = R.where(R.less(x, scalar(0, x)), scalar(-1, x), scalar(0, x)) if dtype.startswith("int") else scalar(0, x)
    return R.where(inside, R.right_shift(x, bits), gone)


@converter("IsInf")
def is_infinite(node: Node, x: Expr, *, detect_negative: int, detect_positive: int) -> Expr:
    """Test for infinity, of one sign or both."""
    tests: list[Expr] = []
    if detect_positive:
        tests.append(R.equal(x, scalar(np.inf, x)))
    if detect_negative:
        tests.append(R.equal(x, scalar(-np.inf, x)))
    return R.logical_or(*tests) if len(tests) == 2 else tests[0] if tests else R.zeros_like(x, "bool")


@converter("Where")
def where(node: Node, condition: Expr, x: Expr, y: Expr) -> Expr:
    """Select ``x`` where the condition holds, else ``y``."""
    return R.where(condition, x, y)


@converter("Cast")
def cast(node: Node, x: Expr, *, to: int) -> Expr:
    """Cast. Floats are truncated to integers; nonzero is true."""
    return cast_to(x, onnx.helper.tensor_dtype_to_np_dtype(to).name)


@converter("CastLike")
def cast_like(node: Node, x: Expr, target: Expr) -> Expr | np.ndarray:
    """Cast to the type of another value."""
    known = constant_value(x)
    return cast_to(x, dtype_of(target)) if known is None else known.astype(dtype_of(target))


def cast_to(x: Expr, dtype: str) -> Expr:
    """Cast to a type that programs compute in."""
    refuse(dtype not in CASTS or dtype_of(x) not in CASTS, f"it casts {dtype_of(x)} to {dtype}")
    if dtype_of(x) == dtype:
        return x
    return R.not_equal(x, scalar(0, x)) if dtype == "bool" else R.astype(x, dtype)


CASTS = frozenset(
    [
        "bool",
        *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
        "float16",
        "float32",
        "float64",
    ]
)
