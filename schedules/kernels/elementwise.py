"""Element-wise operators whose TVM kernels lose non-finite values.

NaN and infinities propagate as in PyTorch. TVM's simplifier treats floats as ordered: it folds ``x == x``, ``x * 0``
and ``x - x``, and turns ``not (x < y)`` into ``x >= y``; its maximum is ``x > y ? x : y``. So bounds are written
as ``x < low ? low : x``, which keeps NaN (and is one instruction on x86), and negations as selects.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from tvm import te, tirx

from . import functions
from .functions import dtype_of, elementwise, is_float, let, negated, unless_nan
from .matmul import broadcast_index, broadcast_shape

SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805

Scalar: TypeAlias = tirx.Expr
Operand: TypeAlias = te.Tensor | tirx.Expr


def pairs(a: Operand, b: Operand, function: Callable[[Scalar, Scalar], Scalar], name: str) -> te.Tensor:
    """Apply ``function`` to two operands, broadcast against each other; one may be a scalar."""
    shapes = [list(x.shape) for x in (a, b) if isinstance(x, te.Tensor)]
    shape = broadcast_shape(*shapes) if len(shapes) == 2 else shapes[0]

    def at(x: Operand, index: tuple[tirx.Var, ...]) -> Scalar:
        if not isinstance(x, te.Tensor):
            return x
        return x(*broadcast_index(list(index), list(x.shape)))

    return te.compute(shape, lambda *index: function(at(a, index), at(b, index)), name=name)


# ---- bounds ----------------------------------------------------------------------------------------------------------


def relu(x: te.Tensor) -> te.Tensor:
    """Compute ``max(x, 0)``."""
    zero = tirx.const(0, x.dtype)
    return elementwise(x, lambda value: tirx.Select(value < zero, zero, value), "relu")


def hardtanh(x: te.Tensor, *, low: float, high: float) -> te.Tensor:
    """Compute ``min(max(x, low), high)``, for ``low <= high``."""
    lower, upper = tirx.const(low, x.dtype), tirx.const(high, x.dtype)

    def bounded(value: Scalar) -> Scalar:
        return let(tirx.Select(value < lower, lower, value), lambda above: tirx.Select(upper < above, upper, above))

    return elementwise(x, bounded, "hardtanh")


def maximum(a: Operand, b: Operand) -> te.Tensor:
    """Compute the larger of two; NaN propagates."""
    return pairs(a, b, lambda x, y: _winner(x, y, tirx.max, lambda one, other: one < other), "maximum")


def minimum(a: Operand, b: Operand) -> te.Tensor:
    """Compute the smaller of two; NaN propagates."""
    return pairs(a, b, lambda x, y: _winner(x, y, tirx.min, lambda one, other: other < one), "minimum")


def _winner(
    x: Scalar,
    y: Scalar,
    of_integers: Callable[[Scalar, Scalar], Scalar],
    loses: Callable[[Scalar, Scalar], Scalar],
) -> Scalar:
    """Return the operand that does not lose. ``loses(y, x) ? x : y`` is y where either is NaN.

    Of integers TVM knows the bounds of its own extremum. Its simplifier did not finish in four minutes with the nested
    selects of a clamped index.
    """
    if not is_float(x):
        return of_integers(x, y)
    if is_constant(y):
        return tirx.Select(loses(x, y), y, x)
    winner = tirx.Select(loses(y, x), x, y)
    return winner if is_constant(x) else unless_nan(x, winner)


# ---- comparisons -----------------------------------------------------------------------------------------------------


def not_equal(a: Operand, b: Operand) -> te.Tensor:
    """Return whether two differ; NaN differs from everything."""
    return pairs(a, b, lambda x, y: negated(x == y), "not_equal")


def isnan(x: te.Tensor) -> te.Tensor:
    """Return whether an element is NaN."""
    return elementwise(x, functions.isnan, "isnan")


def isinf(x: te.Tensor) -> te.Tensor:
    """Return whether an element is infinite."""
    return elementwise(x, lambda value: tirx.abs(value) == tirx.const(math.inf, x.dtype), "isinf")


def isfinite(x: te.Tensor) -> te.Tensor:
    """Return whether an element is finite."""
    return elementwise(x, lambda value: tirx.abs(value) < tirx.const(math.inf, x.dtype), "isfinite")


def logical_not(x: te.Tensor) -> te.Tensor:
    """Negate a boolean."""
    return elementwise(x, negated, "logical_not")


# ---- arithmetic ------------------------------------------------------------------------------------------------------


def subtract(a: Operand, b: Operand) -> te.Tensor:
    """Compute ``a - b`` as ``a + b * -1``, which TVM does not fold. (LLVM makes it one subtraction.)"""
    return pairs(a, b, lambda x, y: x + y * tirx.const(-1, dtype_of(y)), "subtract")


def times_zero(x: te.Tensor) -> te.Tensor:
    """Compute ``x * 0``: NaN for NaN and infinities."""
    zero, nan = tirx.const(0, x.dtype), tirx.const(math.nan, x.dtype)
    return elementwise(
        x, lambda value: tirx.Select(tirx.abs(value) < tirx.const(math.inf, x.dtype), zero, nan), "times_zero"
    )


def power(a: Operand, b: Operand) -> te.Tensor:
    """Compute ``a ** b``; for some constant exponents, as in PyTorch, by products and roots."""

    def of(x: Scalar, y: Scalar) -> Scalar:
        exponent = y.value if is_constant(y) else None
        return POWERS[exponent](x) if exponent in POWERS and is_float(x) else _pow(x, y)

    return pairs(a, b, of, "power")


def _pow(x: Scalar, y: Scalar) -> Scalar:
    """Compute TVM's power without its warning about exponents from 3 on, whose results are right."""
    return tirx.call_intrin(dtype_of(x), "tirx.pow", x, y) if is_float(x) else tirx.power(x, y)


POWERS: dict[float, Callable[[Scalar], Scalar]] = {
    0.5: tirx.sqrt,
    -0.5: lambda x: tirx.const(1, dtype_of(x)) / tirx.sqrt(x),
    2: lambda x: x * x,
    3: lambda x: x * x * x,
    -1: lambda x: tirx.const(1, dtype_of(x)) / x,
    -2: lambda x: tirx.const(1, dtype_of(x)) / (x * x),
}


# ---- activations -----------------------------------------------------------------------------------------------------


def elu(x: te.Tensor, *, alpha: float, scale: float, input_scale: float) -> te.Tensor:
    """Compute ``scale * (x where x > 0 else alpha * (e^(input_scale * x) - 1))``."""
    zero, below, above, inside = (tirx.const(value, x.dtype) for value in (0, alpha * scale, scale, input_scale))
    # A select evaluates both branches: the exponent is clamped at 0, lest a positive x overflow.
    return elementwise(
        x,
        lambda value: tirx.Select(
            value <= zero, functions.expm1(tirx.Select(zero < value, zero, value * inside)) * below, value * above
        ),
        "elu",
    )


def selu(x: te.Tensor) -> te.Tensor:
    """Compute the ELU whose results keep mean 0 and variance 1."""
    return elu(x, alpha=SELU_ALPHA, scale=SELU_SCALE, input_scale=1.0)


def softplus(x: te.Tensor, *, beta: float, threshold: float) -> te.Tensor:
    """Compute ``log(1 + e^(beta x)) / beta``; x where ``beta x`` exceeds ``threshold``."""
    return elementwise(x, lambda value: functions.softplus(value, beta, threshold), "softplus")


def expm1(x: te.Tensor) -> te.Tensor:
    """Compute ``e^x - 1``."""
    return elementwise(x, functions.expm1, "expm1")


def log1p(x: te.Tensor) -> te.Tensor:
    """Compute ``log(1 + x)``."""
    return elementwise(x, functions.log1p, "log1p")


def root(x: te.Tensor, *, degree: float) -> te.Tensor:
    """Compute ``x ** (1 / degree)``."""
    of = tirx.sqrt if degree == 2 else lambda value: _pow(value, tirx.const(1 / degree, x.dtype))
    return elementwise(x, of, "nth_root")  # TVM names the outermost block "root"


def is_constant(x: Scalar) -> bool:
    """Return whether an expression is a constant other than NaN."""
    return isinstance(x, tirx.IntImm) or (isinstance(x, tirx.FloatImm) and not math.isnan(x.value))
