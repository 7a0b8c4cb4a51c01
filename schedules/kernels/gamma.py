"""Logarithm of the gamma function, and its derivative.

Polynomials on [1, 3], Stirling's series above, recurrence and reflection below. In float32 the relative error is about
5e-7 for x > 0; below, next to a zero, it is as much of the terms that cancel. In float64 it is about 1e-9. Narrower
dtypes compute in float32. NaN propagates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm import te, tirx

from .functions import dtype_of, elementwise, let, unless_nan

# Coefficients by falling powers, interpolated at Chebyshev's points from values of 40 digits.
# lgamma(2 + t) / (t (1 + t)) for |t| <= 1.
LGAMMA: tuple[float, ...] = (4.55724036025e-06, -9.63513186131e-06, 3.35335914012e-06, -7.41938597836e-06)
LGAMMA += (4.21961635456e-05, -9.15639286641e-05, 0.000180829190737, -0.000402083985432)
LGAMMA += (0.000915748673798, -0.00210891231395, 0.00499860622041, -0.0123841187402)
LGAMMA += (0.0329650015629, -0.100317303654, 0.422784335098)
# digamma(2 + t) / (2 + t - zero) for |t| <= 1.
DIGAMMA: tuple[float, ...] = (5.91184016836e-05, -0.000118281270594, 1.50026532538e-05, -3.0243949819e-05)
DIGAMMA += (0.000393754594375, -0.000789976628108, 0.00133350493585, -0.00269029008122)
DIGAMMA += (0.00555758228826, -0.0113490905736, 0.0234468080263, -0.0495500296076)
DIGAMMA += (0.108999930543, -0.260738981739, 0.785307538604)
# Remainders of Stirling's series in z = 1 / x^2 for x >= 3: of lgamma times x, of -digamma times x^2.
LGAMMA_TAIL = (0.000504531848956, -0.000567181399199, 0.000792611279315, -0.00277776377634, 0.0833333333024)
DIGAMMA_TAIL = (0.00410937088463, -0.00388566932679, 0.00395796250078, -0.00833319542861, 0.083333333029)
ZERO_HIGH, ZERO_LOW = 1.461669921875, -3.777690663764875e-05  # the positive zero of digamma


def lgamma(x: te.Tensor) -> te.Tensor:
    """Compute ``log |Gamma(x)|``: infinite at 0, at negative integers and at infinities."""
    return elementwise(x, lambda value: _in_float32(value, _lgamma), "lgamma")


def digamma(x: te.Tensor) -> te.Tensor:
    """Compute the derivative of ``log |Gamma(x)|``: NaN at negative integers, infinite at 0, as in PyTorch."""
    return elementwise(x, lambda value: _in_float32(value, _digamma), "digamma")


def _in_float32(x: tirx.Expr, function: Callable[[tirx.Expr], tirx.Expr]) -> tirx.Expr:
    if dtype_of(x) in ("float32", "float64"):
        return let(x, function)
    return tirx.Cast(dtype_of(x), let(tirx.Cast("float32", x), function))


def _lgamma(x: tirx.Expr) -> tirx.Expr:
    def near(t: tirx.Expr) -> tirx.Expr:
        return t * (t + _like(1, x)) * _polynomial(LGAMMA, t)

    def far(y: tirx.Expr) -> tirx.Expr:
        tail = let(_like(1, x) / y, lambda inverse: inverse * _polynomial(LGAMMA_TAIL, inverse * inverse))
        return (y - _like(0.5, x)) * (tirx.log(y) - _like(1, x)) + (_like(math.log(2 * math.pi) / 2 - 0.5, x) + tail)

    def reflected(value: tirx.Expr) -> tirx.Expr:
        """log |Gamma(x)| = log(pi / |sin(pi x)|) - log Gamma(1 - x). The sine is 0 at a pole, NaN at infinity."""
        sine = tirx.abs(tirx.sin(_from_integer(x) * _like(math.pi, x)))
        below = let(
            sine,
            lambda s: tirx.Select(
                _like(0, x) < s, _like(math.log(math.pi), x) - tirx.log(s) - value, _like(math.inf, x)
            ),
        )
        return unless_nan(x, _by_range(x, below, value - tirx.log(x), value))

    return let(_above_one(x, near, far), reflected)


def _digamma(x: tirx.Expr) -> tirx.Expr:
    def near(t: tirx.Expr) -> tirx.Expr:
        return (t + _like(2 - ZERO_HIGH, x) - _like(ZERO_LOW, x)) * _polynomial(DIGAMMA, t)

    def far(y: tirx.Expr) -> tirx.Expr:
        def of(inverse: tirx.Expr) -> tirx.Expr:
            square = inverse * inverse
            return tirx.log(y) - inverse * _like(0.5, x) - square * _polynomial(DIGAMMA_TAIL, square)

        return let(_like(1, x) / y, of)

    def reflected(value: tirx.Expr) -> tirx.Expr:
        """digamma(x) = digamma(1 - x) - pi / tan(pi x)."""
        below = let(
            _from_integer(x) * _like(math.pi, x),
            lambda angle: tirx.Select(
                angle == _like(0, x),
                _like(math.nan, x),
                value - _like(math.pi, x) * tirx.cos(angle) / tirx.sin(angle),
            ),
        )
        return unless_nan(x, _by_range(x, below, value - _like(1, x) / x, value))

    return let(_above_one(x, near, far), reflected)


def _above_one(
    x: tirx.Expr, near: Callable[[tirx.Expr], tirx.Expr], far: Callable[[tirx.Expr], tirx.Expr]
) -> tirx.Expr:
    """Evaluate at y >= 1: ``1 - x`` of a negative x, ``x + 1`` below 1. ``near`` takes y - 2, without rounding."""
    one, two, three = (_like(value, x) for value in (1, 2, 3))
    offset = _by_range(x, _like(-1, x) - x, x - one, x - two)
    y = _by_range(x, one - x, x + one, x)
    return let(y, lambda y: tirx.Select(y < three, let(offset, near), far(y)))


def _by_range(x: tirx.Expr, below_zero: tirx.Expr, below_one: tirx.Expr, above: tirx.Expr) -> tirx.Expr:
    return tirx.Select(x < _like(0, x), below_zero, tirx.Select(x < _like(1, x), below_one, above))


def _from_integer(x: tirx.Expr) -> tirx.Expr:
    """The signed distance to the nearest integer, without rounding."""
    return x - tirx.round(x)


def _polynomial(coefficients: Sequence[float], x: tirx.Expr) -> tirx.Expr:
    value = _like(coefficients[0], x)
    for coefficient in coefficients[1:]:
        value = value * x + _like(coefficient, x)
    return value


def _like(value: float, x: tirx.Expr) -> tirx.Expr:
    return tirx.const(value, dtype_of(x))
