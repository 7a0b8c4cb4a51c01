"""Operators that work element by element."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import relax
from tvm.relax import op as R

from relay_passes.analysis.fixed_point import EightBits
from relay_passes.ir import Expr, is_float
from relay_passes.operators.training import digamma, expm1, lgamma, log1p

from ..remainders import signed_as_dividend, signed_as_divisor
from .registry import Number, Site, converter

UNARY = {
    "abs": R.abs,
    "acos": R.acos,
    "acosh": R.acosh,
    "asin": R.asin,
    "asinh": R.asinh,
    "atan": R.atan,
    "atanh": R.atanh,
    "cos": R.cos,
    "digamma": digamma,
    "erf": R.erf,
    "exp": R.exp,
    "expm1": expm1,
    "lgamma": lgamma,
    "log": R.log,
    "log1p": log1p,
    "neg": R.negative,
    "relu": R.nn.relu,
    "rsqrt": R.rsqrt,
    "selu": R.nn.selu,
    "sigmoid": R.sigmoid,
    "sign": R.sign,
    "silu": R.nn.silu,
    "sin": R.sin,
    "sqrt": R.sqrt,
    "square": R.square,
    "tan": R.tan,
    "tanh": R.tanh,
}
ROUNDING = {"ceil": R.ceil, "floor": R.floor, "round": R.round, "trunc": R.trunc}


def _unary(operator: Callable[[Expr], Expr]) -> Callable[..., Expr]:
    def convert(at: Site, x: Expr) -> Expr:
        return at.emit(operator(at.cast(x)))

    return convert


for _name, _operator in UNARY.items():
    converter(f"{_name}.default")(_unary(_operator))


def _rounding(operator: Callable[[Expr], Expr]) -> Callable[..., Expr]:
    def convert(at: Site, x: Expr) -> Expr:
        return at.emit(operator(x)) if is_float(x) else x

    return convert


for _name, _operator in ROUNDING.items():
    converter(f"{_name}.default")(_rounding(_operator))


@converter("round.decimals")
def round_to(at: Site, x: Expr, decimals: int) -> Expr:
    """Round to a number of decimal places; a negative number counts places before the point."""
    if not is_float(x):
        return x
    scale = at.cast(10 ** abs(decimals))
    larger, smaller = (R.multiply, R.divide) if decimals > 0 else (R.divide, R.multiply)
    return at.emit(smaller(at.emit(R.round(at.emit(larger(x, scale)))), scale))


@converter("alias.default", "clone.default", "lift_fresh_copy.default", "detach_copy.default", "contiguous.default")
def same(at: Site, x: Expr) -> Expr:
    """Return x."""
    return x


@converter("pock_tvm::stop_gradient.default")
def stop_gradient(at: Site, x: Expr) -> Expr:
    """Stop the gradient."""
    return at.emit(R.grad.no_grad(x)) if is_float(x) else x


@converter("pock_tvm::stated_scale.default")
def stated_scale(at: Site, x: Expr, scale: float, zero: int) -> Expr:
    """Note the scale of x."""
    if isinstance(x, relax.Var):
        at.stated[x.name] = EightBits(scale, zero)
    return x


@converter("_to_copy.default")
def to_copy(at: Site, x: Expr, dtype: Any = None) -> Expr:
    """Cast to the result's element type."""
    return at.cast(x)


@converter("copy.default")
def copy(at: Site, x: Expr, src: Expr) -> Expr:
    """Return ``src``, cast and broadcast to x."""
    return at.broadcast(at.cast(src))


# ---- arithmetic ------------------------------------------------------------------------------------------------------


def _scaled(at: Site, y: Expr | Number, alpha: Number) -> Expr | Number:
    if alpha == 1:
        return y
    return at.emit(R.multiply(*at.promoted(y, alpha))) if isinstance(y, relax.Expr) else y * alpha


@converter("add.Tensor", "add.Scalar")
def add(at: Site, x: Expr, other: Expr | Number, alpha: Number = 1) -> Expr:
    """``x + alpha * other``; logical or for booleans."""
    x, y = at.promoted(x, _scaled(at, other, alpha))
    return at.emit(R.logical_or(x, y) if at.dtype == "bool" else R.add(x, y))


@converter("sub.Tensor", "sub.Scalar")
def sub(at: Site, x: Expr, other: Expr | Number, alpha: Number = 1) -> Expr:
    """``x - alpha * other``."""
    return at.emit(R.subtract(*at.promoted(x, _scaled(at, other, alpha))))


@converter("rsub.Tensor", "rsub.Scalar")
def rsub(at: Site, x: Expr, other: Expr | Number, alpha: Number = 1) -> Expr:
    """``other - alpha * x``."""
    return at.emit(R.subtract(*at.promoted(other, _scaled(at, x, alpha))))


@converter("mul.Tensor", "mul.Scalar")
def mul(at: Site, x: Expr, other: Expr | Number) -> Expr:
    """``x * other``; logical and for booleans."""
    x, y = at.promoted(x, other)
    return at.emit(R.logical_and(x, y) if at.dtype == "bool" else R.multiply(x, y))


@converter("div.Tensor", "div.Scalar", "true_divide.Tensor")
def div(at: Site, x: Expr, other: Expr | Number) -> Expr:
    """``x / other``, in floating point for integers too."""
    if not isinstance(other, relax.Expr) and other == 0:  # TVM refuses to divide by a known zero
        return at.emit(R.multiply(at.cast(x), at.cast(math.copysign(math.inf, other))))
    return at.emit(R.divide(*at.promoted(x, other)))


@converter("div.Tensor_mode", "div.Scalar_mode")
def div_mode(at: Site, x: Expr, other: Expr | Number, rounding_mode: str | None) -> Expr:
    """``x / other``, rounded down or towards zero."""
    x, y = at.promoted(x, other)
    if rounding_mode is None:
        return at.emit(R.divide(x, y))
    return _quotient(at, x, y, down=rounding_mode == "floor")


@converter("floor_divide.default", "floor_divide.Scalar")
def floor_divide(at: Site, x: Expr, other: Expr | Number) -> Expr:
    """``x / other``, rounded down."""
    return _quotient(at, *at.promoted(x, other), down=True)


def _quotient(at: Site, x: Expr, y: Expr, *, down: bool) -> Expr:
    if is_float(x):
        return at.emit((R.floor if down else R.trunc)(at.emit(R.divide(x, y))))
    if down:
        return at.emit(R.floor_divide(x, y))
    size = at.emit(R.floor_divide(at.emit(R.abs(x)), at.emit(R.abs(y))))
    return at.emit(R.multiply(size, at.emit(R.multiply(at.emit(R.sign(x)), at.emit(R.sign(y))))))


@converter("remainder.Tensor", "remainder.Scalar", "remainder.Scalar_Tensor")
def remainder(at: Site, x: Expr | Number, other: Expr | Number) -> Expr:
    """``x - floor(x / other) * other``: it has the sign of ``other``."""
    return signed_as_divisor(at.emit, *at.promoted(x, other))


@converter("fmod.Tensor", "fmod.Scalar")
def fmod(at: Site, x: Expr, other: Expr | Number) -> Expr:
    """``x - trunc(x / other) * other``: it has the sign of x."""
    return signed_as_dividend(at.emit, *at.promoted(x, other))


@converter("pow.Tensor_Tensor", "pow.Tensor_Scalar", "pow.Scalar")
def power(at: Site, x: Expr | Number, exponent: Expr | Number) -> Expr:
    """``x ** exponent``; integers are computed in float64, exact up to 53 bits."""
    if at.dtype.startswith("float"):
        return at.emit(R.power(*at.promoted(x, exponent)))
    powers = at.emit(R.power(at.cast(x, "float64"), at.cast(exponent, "float64")))
    return at.cast(at.emit(R.round(powers)))


@converter("reciprocal.default")
def reciprocal(at: Site, x: Expr) -> Expr:
    """``1 / x``."""
    return at.emit(R.divide(*at.promoted(1, x)))


@converter("angle.default")
def angle(at: Site, x: Expr) -> Expr:
    """The angle of a real number: pi below 0, else 0."""
    x = at.cast(x)
    turned = at.emit(R.where(at.emit(R.less(x, at.cast(0.0))), at.cast(math.pi), at.cast(0.0)))
    return at.emit(R.where(at.emit(R.isnan(x)), x, turned))


@converter("maximum.default", "max.other")
def maximum(at: Site, x: Expr, other: Expr) -> Expr:
    """``max(x, other)``."""
    return at.emit(R.maximum(*at.promoted(x, other)))


@converter("minimum.default", "min.other")
def minimum(at: Site, x: Expr, other: Expr) -> Expr:
    """``min(x, other)``."""
    return at.emit(R.minimum(*at.promoted(x, other)))


def _number_that_wins(wins: Callable[[Expr, Expr], Expr]) -> Callable[..., Expr]:
    """Make a converter of an extremum that ignores NaN, and gives all of the gradient to x where both are equal."""

    def convert(at: Site, x: Expr, other: Expr) -> Expr:
        x, y = at.promoted(x, other)
        takes_x = at.emit(wins(x, y))
        if is_float(y):
            takes_x = at.emit(R.logical_or(takes_x, at.emit(R.isnan(y))))
        return at.emit(R.where(takes_x, x, y))

    return convert


converter("fmax.default")(_number_that_wins(R.greater_equal))
converter("fmin.default")(_number_that_wins(R.less_equal))


@converter("clamp.default", "clamp_min.default", "clamp_max.default")
def clamp(at: Site, x: Expr, min: Number | None = None, max: Number | None = None) -> Expr:  # noqa: A002 - schema
    """``min(max(x, low), high)``; the gradient passes where x equals a bound."""
    x = at.cast(x)
    if is_float(x):
        low, high = (-math.inf if min is None else min), (math.inf if max is None else max)
        return at.emit(R.clip(x, float(low), float(high)))
    for bound, winner in ((min, R.maximum), (max, R.minimum)):
        if bound is not None:
            x = at.emit(winner(x, at.cast(bound)))
    return x


@converter("clamp.Tensor", "clamp_min.Tensor", "clamp_max.Tensor")
def clamp_tensor(at: Site, x: Expr, min: Expr | None = None, max: Expr | None = None) -> Expr:  # noqa: A002 - schema
    """``min(max(x, low), high)`` with tensor bounds, which get the gradient where they apply."""
    x = at.broadcast(at.cast(x))
    for bound, beyond in ((min, R.less), (max, R.greater)):
        if bound is not None:
            bound = at.cast(bound)
            x = at.emit(R.where(at.emit(beyond(x, bound)), bound, x))
    return x


@converter("sinh.default")
def hyperbolic_sine(at: Site, x: Expr) -> Expr:
    """``(e^x - e^-x) / 2``, accurate near 0; LLVM has no sinh."""
    x = at.cast(x)
    difference = R.subtract(at.emit(expm1(x)), at.emit(expm1(at.emit(R.negative(x)))))
    return at.emit(R.multiply(at.emit(difference), at.cast(0.5)))


@converter("cosh.default")
def hyperbolic_cosine(at: Site, x: Expr) -> Expr:
    """``(e^x + e^-x) / 2``; LLVM has no cosh."""
    x = at.cast(x)
    total = R.add(at.emit(R.exp(x)), at.emit(R.exp(at.emit(R.negative(x)))))
    return at.emit(R.multiply(at.emit(total), at.cast(0.5)))


@converter("exp2.default", "prims::exp2.default")
def power_of_two(at: Site, x: Expr) -> Expr:
    """``2 ** x``."""
    return at.emit(R.exp(at.emit(R.multiply(at.cast(x), at.cast(math.log(2))))))


def _logarithm(base: float) -> Callable[..., Expr]:
    def convert(at: Site, x: Expr) -> Expr:
        return at.emit(R.multiply(at.emit(R.log(at.cast(x))), at.cast(1 / math.log(base))))

    return convert


converter("log2.default")(_logarithm(2))
converter("log10.default")(_logarithm(10))


@converter("atan2.default")
def atan2(at: Site, x: Expr, other: Expr) -> Expr:
    """The angle of the point (other, x)."""
    return at.emit(R.atan2(*at.promoted(x, other)))
