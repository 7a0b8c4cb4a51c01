"""Exponential functions that vectorise.

LLVM calls the C library for each lane of ``exp``. These are polynomials, with a relative error of about 2e-7. NaN
propagates. float32 only: other dtypes use the C library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm import te, tirx

# Cephes, expf: minimax on [-log(2) / 2, log(2) / 2] of (exp(r) - 1 - r) / r^2.
EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
LOG2_HIGH, LOG2_LOW = 0.693359375, -2.12194440e-4
EXP_LOWEST, EXP_HIGHEST = -87.336544, 88.722832  # range of normal float32 results; outside: 0 and infinity
EXPM1_LOWEST = -30.0  # below, e^x - 1 rounds to -1
# Cephes, logf: (log(1 + r) - r + r^2 / 2) / r^3 on [sqrt(1 / 2) - 1, sqrt(2) - 1].
LOG: tuple[float, ...] = (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1)
LOG += (-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)
BITS_OF_ONE, BITS_OF_ROOT = 0x3F800000, 0x3F3504F3  # bit patterns of float32 1 and sqrt(1 / 2)
# Cephes, tanhf: (tanh(x) - x) / x^3 for |x| < 0.625.
TANH = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
# Eigen, erf of single precision: x P(x^2) / Q(x^2) for |x| < 4.
ERF_P: tuple[float, ...] = (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05)
ERF_P += (-7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02)
ERF_Q: tuple[float, ...] = (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03)
ERF_Q += (-1.42647390514189e-02,)


def exp(x: tirx.Expr) -> tirx.Expr:
    """Compute ``e ** x``."""
    if dtype_of(x) != "float32":
        return tirx.exp(x)

    def of(x: tirx.Expr) -> tirx.Expr:
        inside = tirx.max(tirx.min(x, _f(EXP_HIGHEST)), _f(EXP_LOWEST))
        value = let(inside, lambda y: let(tirx.floor(y * _f(1 / math.log(2)) + _f(0.5)), lambda n: reduced(y, n)))
        # Above the range, x + inf is infinite, or NaN as x is.
        above = tirx.Select(x <= _f(EXP_HIGHEST), value, x + _f(math.inf))
        return tirx.Select(x < _f(EXP_LOWEST), _f(0), above)

    def reduced(y: tirx.Expr, power: tirx.Expr) -> tirx.Expr:
        rest = y - power * _f(LOG2_HIGH) - power * _f(LOG2_LOW)
        value = let(rest, lambda r: _polynomial(EXP, r) * r * r + r + _f(1))
        # Added to the exponent's bits: 2^128 overflows float32, and with it the value is below 1.
        return tirx.reinterpret("float32", tirx.reinterpret("int32", value) + (tirx.Cast("int32", power) << 23))

    return let(x, of)


def expm1(x: tirx.Expr) -> tirx.Expr:
    """Compute ``e ** x - 1``, accurate near 0."""
    if dtype_of(x) != "float32":
        return let(x, _expm1_by_log)

    def of(x: tirx.Expr) -> tirx.Expr:
        inside = tirx.max(tirx.min(x, _f(EXP_HIGHEST)), _f(EXPM1_LOWEST))
        value = let(inside, lambda y: let(tirx.floor(y * _f(1 / math.log(2)) + _f(0.5)), lambda n: reduced(y, n)))
        return unless_nan(x, tirx.Select(x > _f(EXP_HIGHEST), _f(math.inf), value))

    def reduced(y: tirx.Expr, power: tirx.Expr) -> tirx.Expr:
        rest = y - power * _f(LOG2_HIGH) - power * _f(LOG2_LOW)
        half = _power_of_two(tirx.Cast("int32", power) - 1)  # 2^power = 2 half: 2^128 overflows float32
        value = let(rest, lambda r: _polynomial(EXP, r) * r * r + r)
        return let(half, lambda h: (h * value + (h - _f(0.5))) * _f(2))

    return let(x, of)


def _expm1_by_log(x: tirx.Expr) -> tirx.Expr:
    """Compute ``(u - 1) x / log(u)`` with u = e^x: rounding errors cancel. (Kahan; Higham, Accuracy and Stability of
    Numerical Algorithms, 1.14.1.)"""
    one = tirx.const(1, dtype_of(x))

    def of(u: tirx.Expr) -> tirx.Expr:
        is_limit = tirx.any(u - one == tirx.const(-1, dtype_of(x)), u == tirx.const(math.inf, dtype_of(x)))
        return tirx.Select(u == one, x, tirx.Select(is_limit, u - one, (u - one) * x / tirx.log(u)))

    return let(tirx.exp(x), of)


def log1p(x: tirx.Expr) -> tirx.Expr:
    """Compute ``log(1 + x)``, accurate near 0."""
    if dtype_of(x) != "float32":
        return tirx.log1p(x)

    def of(x: tirx.Expr) -> tirx.Expr:
        shifted = tirx.reinterpret("int32", x + _f(1)) + (BITS_OF_ONE - BITS_OF_ROOT)
        value = let(shifted, lambda bits: let((bits >> 23) - 127, lambda power: reduced(x, bits, power)))
        limit = tirx.Select(x < _f(-1), _f(math.nan), _f(-math.inf))
        return tirx.Select(x <= _f(-1), limit, tirx.Select(x < _f(math.inf), value, x))

    def reduced(x: tirx.Expr, bits: tirx.Expr, power: tirx.Expr) -> tirx.Expr:
        """Evaluate with 1 + x = 2^power (1 + r). Near 0, r is x itself, free of the rounding of 1 + x."""
        mantissa = tirx.reinterpret("float32", tirx.bitwise_and(bits, tirx.const(0x7FFFFF, "int32")) + BITS_OF_ROOT)
        rest = tirx.Select(power == tirx.const(0, "int32"), x, mantissa - _f(1))
        count = tirx.Cast("float32", power)
        return let(
            rest,
            lambda r: (
                r
                + (let(r * r, lambda z: z * (r * _polynomial(LOG, r) - _f(0.5))) + count * _f(LOG2_LOW))
                + count * _f(LOG2_HIGH)
            ),
        )

    return let(x, of)


def softplus(x: tirx.Expr, beta: float, threshold: float) -> tirx.Expr:
    """Compute ``log(1 + e ** (beta x)) / beta``; x where ``beta x`` exceeds ``threshold``."""
    slope, most = tirx.const(beta, dtype_of(x)), tirx.const(threshold, dtype_of(x))

    def of(x: tirx.Expr) -> tirx.Expr:
        inside = tirx.Select(most < x * slope, most, x * slope)
        return tirx.Select(most < x * slope, x, log1p(exp(inside)) / slope)

    return let(x, of)


def sigmoid(x: tirx.Expr) -> tirx.Expr:
    """Compute ``1 / (1 + e ** -x)``."""
    one = tirx.const(1, dtype_of(x))
    return one / (one + exp(tirx.const(0, dtype_of(x)) - x))


def tanh(x: tirx.Expr) -> tirx.Expr:
    """Compute the hyperbolic tangent."""
    if dtype_of(x) != "float32":
        return tirx.tanh(x)

    def of(x: tirx.Expr) -> tirx.Expr:
        small = let(x * x, lambda square: x + x * square * _polynomial(TANH, square))
        large = _f(1) - _f(2) / (exp(x + x) + _f(1))
        return tirx.Select(tirx.max(x, _f(0) - x) < _f(0.625), small, unless_nan(x, large))

    return let(x, of)


def erf(x: tirx.Expr) -> tirx.Expr:
    """Compute the error function."""
    if dtype_of(x) != "float32":
        return tirx.erf(x)

    def of(x: tirx.Expr) -> tirx.Expr:
        inside = tirx.max(tirx.min(x, _f(4)), _f(-4))
        value = let(inside, lambda y: let(y * y, lambda z: y * _polynomial(ERF_P, z) / _polynomial(ERF_Q, z)))
        return unless_nan(x, value)

    return let(x, of)


def gelu(x: tirx.Expr) -> tirx.Expr:
    """Compute ``x * Phi(x)`` with the error function."""
    half, one, root = (tirx.const(value, dtype_of(x)) for value in (0.5, 1, math.sqrt(0.5)))
    return let(x, lambda x: x * half * (one + erf(x * root)))


def gelu_tanh(x: tirx.Expr) -> tirx.Expr:
    """Compute ``x * Phi(x)`` with PyTorch's tanh approximation."""
    half, one, cubic, root = (tirx.const(value, dtype_of(x)) for value in (0.5, 1, 0.044715, math.sqrt(2 / math.pi)))
    return let(x, lambda x: x * half * (one + tanh(root * (x + cubic * x * x * x))))


def silu(x: tirx.Expr) -> tirx.Expr:
    """Compute ``x * sigmoid(x)``."""
    return let(x, lambda x: x * sigmoid(x))


def elementwise(x: te.Tensor, function: Callable[[tirx.Expr], tirx.Expr], name: str = "") -> te.Tensor:
    """Apply ``function`` to each element."""
    return te.compute(x.shape, lambda *index: function(x(*index)), name=name or function.__name__)


def softmax(x: te.Tensor) -> te.Tensor:
    """Compute ``e ** x / sum e ** x`` along the last axis; NaN for a row of -inf."""
    return _softmax(x, lambda total: tirx.const(1, x.dtype) / total)


def safe_softmax(x: te.Tensor) -> te.Tensor:
    """Compute ``softmax(x)``, but 0 for a row of -inf: fully masked attention."""
    zero, one = tirx.const(0, x.dtype), tirx.const(1, x.dtype)
    return _softmax(x, lambda total: tirx.Select(total == zero, zero, one / total))


def _softmax(x: te.Tensor, inverse: Callable[[tirx.Expr], tirx.Expr]) -> te.Tensor:
    # te.max of a row of -inf is the lowest finite number, of a row with NaN any: the sums are still 0 and NaN.
    *rows, length = x.shape
    a, b = te.reduce_axis((0, length), name="a"), te.reduce_axis((0, length), name="b")
    largest = te.compute(rows, lambda *row: te.max(x(*row, a), axis=a), name="largest")
    power = te.compute(x.shape, lambda *index: exp(x(*index) - largest(*index[:-1])), name="power")
    total = te.compute(rows, lambda *row: te.sum(power(*row, b), axis=b), name="total")
    scale = te.compute(rows, lambda *row: inverse(total(*row)), name="scale")
    return te.compute(x.shape, lambda *index: power(*index) * scale(*index[:-1]), name="softmax")


def let(value: tirx.Expr, body: Callable[[tirx.Expr], tirx.Expr]) -> tirx.Expr:
    """Bind ``value`` to a variable in ``body``, so that it is computed, and printed, once."""
    var = tirx.Var("t", dtype_of(value))
    return tirx.Let(var, value, body(var))


def _polynomial(coefficients: Sequence[float], x: tirx.Expr) -> tirx.Expr:
    value = _f(coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + _f(coefficient)
    return value


def _power_of_two(power: tirx.Expr) -> tirx.Expr:
    return tirx.reinterpret("float32", (power + 127) << 23)


def unless_nan(x: tirx.Expr, value: tirx.Expr) -> tirx.Expr:
    """Return ``value``, but NaN where x is NaN. (TVM does not vectorise ``isnan``.)"""
    return tirx.Select(x <= tirx.const(math.inf, dtype_of(x)), value, x)


def isnan(x: tirx.Expr) -> tirx.Expr:
    """Return whether a number is NaN."""
    return negated(x <= tirx.const(math.inf, dtype_of(x)))


def negated(condition: tirx.Expr) -> tirx.Expr:
    """Negate a condition, which may be a comparison with NaN."""
    return tirx.Select(condition, tirx.const(False, "bool"), tirx.const(True, "bool"))


def dtype_of(x: tirx.Expr) -> str:
    """Return the dtype of an expression."""
    return str(x.ty.dtype)


def is_float(x: tirx.Expr) -> bool:
    """Return whether an expression has a float dtype, and so can be NaN."""
    return dtype_of(x).startswith(("float", "bfloat"))


def _f(value: float) -> tirx.Expr:
    return tirx.const(value, "float32")
