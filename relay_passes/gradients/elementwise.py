"""Element-wise operators, with NumPy broadcasting between two operands."""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm.relax import op as R

from schedules.kernels.elementwise import SELU_ALPHA, SELU_SCALE

from ..ir import Expr, constant_value, dtype_of, scalar, shape_of
from ..operators.training import digamma
from .broadcasting import to_operand
from .registry import Use, flat, gradient

flat(
    *("relax.floor", "relax.ceil", "relax.round", "relax.trunc", "relax.sign", "relax.floor_divide"),
    *("relax.argmax", "relax.argmin", "relax.zeros_like", "relax.ones_like", "relax.full_like", "relax.grad.no_grad"),
)


# ---- two operands ----------------------------------------------------------------------------------------------------


@gradient("relax.add", 0)
def add_left(use: Use) -> Expr:
    """z = x + y: dx = dz."""
    return to_operand(use, 0, use.grad)


@gradient("relax.add", 1)
def add_right(use: Use) -> Expr:
    """z = x + y: dy = dz."""
    return to_operand(use, 1, use.grad)


@gradient("relax.subtract", 0)
def subtract_left(use: Use) -> Expr:
    """z = x - y: dx = dz."""
    return to_operand(use, 0, use.grad)


@gradient("relax.subtract", 1)
def subtract_right(use: Use) -> Expr:
    """z = x - y: dy = -dz."""
    return R.negative(to_operand(use, 1, use.grad))


@gradient("relax.multiply", 0)
def multiply_left(use: Use) -> Expr:
    """z = x * y: dx = dz * y."""
    return to_operand(use, 0, use.grad * use.args[1])


@gradient("relax.multiply", 1)
def multiply_right(use: Use) -> Expr:
    """z = x * y: dy = dz * x."""
    return to_operand(use, 1, use.grad * use.args[0])


@gradient("relax.divide", 0)
def divide_left(use: Use) -> Expr:
    """z = x / y: dx = dz / y."""
    return to_operand(use, 0, use.grad / use.args[1])


@gradient("relax.divide", 1)
def divide_right(use: Use) -> Expr:
    """z = x / y: dy = -dz * (z / y)."""
    return R.negative(to_operand(use, 1, use.grad * (use.result / use.args[1])))


@gradient("relax.power", 0)
def power_base(use: Use) -> Expr:
    """z = x ** y: dx = dz * y * x ** (y - 1), and 0 where y = 0."""
    x, y = use.args
    exponent = constant_value(y)
    if exponent is not None and exponent.size == 1:
        value = float(exponent.reshape(()))
        if value == 0:
            return R.zeros(shape_of(x), dtype_of(x))
        slope = x if value == 2 else R.power(x, scalar(value - 1, x))
        return to_operand(use, 0, use.grad * (slope * scalar(value, x)))
    slope = use.grad * (y * R.power(x, y - scalar(1, y)))
    return to_operand(use, 0, R.where(R.equal(y, scalar(0, y)), scalar(0, y), slope))


@gradient("relax.power", 1)
def power_exponent(use: Use) -> Expr:
    """z = x ** y: dy = dz * z * log(x), and 0 where x = 0 and y >= 0."""
    x, y = use.args
    is_flat = R.logical_and(R.equal(x, scalar(0, x)), R.greater_equal(y, scalar(0, y)))
    return to_operand(use, 1, R.where(is_flat, scalar(0, x), use.grad * (use.result * R.log(x))))


def _extremum(use: Use, operand: int, wins: Callable[[Expr, Expr], Expr]) -> Expr:
    """The extremum gets the gradient. Equal operands share it; where one is NaN both get all of it, as in PyTorch."""
    mine, other = use.args[operand], use.args[1 - operand]
    zero, half = scalar(0, use.result), scalar(0.5, use.result)
    share = R.where(wins(other, mine), zero, R.where(R.equal(mine, other), use.grad * half, use.grad))
    return to_operand(use, operand, share)


@gradient("relax.maximum", 0)
def maximum_left(use: Use) -> Expr:
    """z = max(x, y): dx = dz where x > y, half of it where they are equal."""
    return _extremum(use, 0, R.greater)


@gradient("relax.maximum", 1)
def maximum_right(use: Use) -> Expr:
    """z = max(x, y): dy = dz where y > x, half of it where they are equal."""
    return _extremum(use, 1, R.greater)


@gradient("relax.minimum", 0)
def minimum_left(use: Use) -> Expr:
    """z = min(x, y): dx = dz where x < y, half of it where they are equal."""
    return _extremum(use, 0, R.less)


@gradient("relax.minimum", 1)
def minimum_right(use: Use) -> Expr:
    """z = min(x, y): dy = dz where y < x, half of it where they are equal."""
    return _extremum(use, 1, R.less)


@gradient("relax.where", 1)
def where_true(use: Use) -> Expr:
    """z = c ? x : y: dx = c ? dz : 0."""
    return to_operand(use, 1, R.where(use.args[0], use.grad, scalar(0, use.result)))


@gradient("relax.where", 2)
def where_false(use: Use) -> Expr:
    """z = c ? x : y: dy = c ? 0 : dz."""
    return to_operand(use, 2, R.where(use.args[0], scalar(0, use.result), use.grad))


# ---- activations -----------------------------------------------------------------------------------------------------
# Rules read the result, not the operand, where they can: the result is often saved for another reader anyway.


@gradient("relax.nn.relu")
def relu(use: Use) -> Expr:
    """y = max(x, 0): dx = dy where y > 0 or is NaN."""
    zero = scalar(0, use.result)
    return R.where(use.result <= zero, zero, use.grad)


@gradient("pock.hardtanh")
def hardtanh(use: Use) -> Expr:
    """y = min(max(x, low), high), as in ReLU6: dx = dy where low < y < high."""
    y = use.result
    low, high = (scalar(float(use.call.attrs[bound]), y) for bound in ("low", "high"))
    return R.where(R.logical_and(y > low, y < high), use.grad, scalar(0, y))


@gradient("relax.clip")
def clip(use: Use) -> Expr:
    """y = clip(x, low, high): dx = dy where low <= x <= high, ends included (unlike hardtanh), as in PyTorch."""
    x = use.args[0]
    low, high = (scalar(float(bound.value), x) for bound in use.args[1:])
    return R.where(R.logical_and(x >= low, x <= high), use.grad, scalar(0, x))


@gradient("relax.nn.leakyrelu")
def leaky_relu(use: Use) -> Expr:
    """y = x where x > 0 else alpha * x: dx = dy or alpha * dy."""
    x = use.args[0]
    return R.where(x > scalar(0, x), use.grad, use.grad * scalar(float(use.call.attrs.alpha), x))


@gradient("relax.nn.gelu")
def gelu(use: Use) -> Expr:
    """y = x * P(x), P the normal distribution function and p its density: dx = dy * (P(x) + x * p(x))."""
    x = use.args[0]
    cumulative = (R.erf(x * scalar(math.sqrt(0.5), x)) + scalar(1, x)) * scalar(0.5, x)
    density = R.exp(x * x * scalar(-0.5, x)) * scalar(1 / math.sqrt(2 * math.pi), x)
    return use.grad * (cumulative + x * density)


@gradient("relax.nn.gelu_tanh")
def gelu_tanh(use: Use) -> Expr:
    """y = x / 2 * (1 + t), t = tanh(s * (x + c * x^3)): dx = dy / 2 * (1 + t + x * (1 - t^2) * s * (1 + 3 c x^2))."""
    x = use.args[0]
    c, s, one = 0.044715, math.sqrt(2 / math.pi), scalar(1, x)
    t = R.tanh((x + x * x * x * scalar(c, x)) * scalar(s, x))
    slope = (one + x * x * scalar(3 * c, x)) * scalar(s, x)
    return use.grad * scalar(0.5, x) * (one + t + x * (one - t * t) * slope)


@gradient("relax.nn.silu")
def silu(use: Use) -> Expr:
    """y = x * s, s = sigmoid(x): dx = dy * s * (1 + x * (1 - s))."""
    x = use.args[0]
    s, one = R.sigmoid(x), scalar(1, x)
    return use.grad * s * (one + x * (one - s))


@gradient("relax.nn.selu")
def selu(use: Use) -> Expr:
    """y = scale * (x where x > 0 else alpha * (e^x - 1)): dx = dy * scale or dy * scale * alpha * e^x."""
    return _elu(use, SELU_ALPHA, SELU_SCALE, 1.0)


@gradient("pock.elu")
def elu(use: Use) -> Expr:
    """y = scale * (x where x > 0 else alpha * (e^(s x) - 1)): dx = dy * scale or dy * scale * alpha * s * e^(s x)."""
    return _elu(use, *(float(use.call.attrs[name]) for name in ("alpha", "scale", "input_scale")))


def _elu(use: Use, alpha: float, scale: float, input_scale: float) -> Expr:
    """Reads x, since y + scale * alpha cancels far below zero. Clamps x to at most 0, since e^x may overflow above."""
    x = use.args[0]
    zero = scalar(0, x)
    exponent = R.where(x > zero, zero, x if input_scale == 1 else x * scalar(input_scale, x))
    slope = R.exp(exponent) * scalar(alpha * scale * input_scale, x)
    return use.grad * R.where(x > zero, scalar(scale, x), slope)


@gradient("relax.nn.softplus")
def softplus(use: Use) -> Expr:
    """y = log(1 + e^(beta x)) / beta: dx = dy * sigmoid(beta x)."""
    x = use.args[0]
    scaled = x * scalar(float(use.call.attrs.beta), x)
    return R.where(scaled > scalar(float(use.call.attrs.threshold), x), use.grad, use.grad * R.sigmoid(scaled))


def _prelu_slopes(use: Use) -> Expr:
    """The slopes, reshaped to broadcast against x."""
    x, slopes = use.args
    shape = [1] * len(shape_of(x))
    shape[int(use.call.attrs.axis)] = shape_of(slopes)[0]
    return R.reshape(slopes, shape)


@gradient("relax.nn.prelu", 0)
def prelu_data(use: Use) -> Expr:
    """y = x where x > 0 else a * x: dx = dy or a * dy."""
    x = use.args[0]
    return R.where(x > scalar(0, x), use.grad, use.grad * _prelu_slopes(use))


@gradient("relax.nn.prelu", 1)
def prelu_slope(use: Use) -> Expr:
    """y = x where x > 0 else a * x: da = sum of dy * x where x <= 0."""
    x, slopes = use.args
    zero = scalar(0, x)
    share = R.where(x > zero, zero, use.grad * x)
    axis = int(use.call.attrs.axis) % len(shape_of(x))
    summed = R.sum(share, axis=[other for other in range(len(shape_of(x))) if other != axis])
    return summed if shape_of(slopes)[0] != 1 else R.reshape(R.sum(share), (1,))


# ---- one operand -----------------------------------------------------------------------------------------------------


@gradient("relax.negative")
def negative(use: Use) -> Expr:
    """y = -x: dx = -dy."""
    return R.negative(use.grad)


@gradient("relax.abs")
def absolute(use: Use) -> Expr:
    """y = |x|: dx = dy * sign(x)."""
    return use.grad * R.sign(use.args[0])


@gradient("relax.exp")
def exp(use: Use) -> Expr:
    """y = e^x: dx = dy * y."""
    return use.grad * use.result


@gradient("relax.log")
def log(use: Use) -> Expr:
    """y = log(x): dx = dy / x."""
    return use.grad / use.args[0]


@gradient("pock.expm1")
def expm1(use: Use) -> Expr:
    """y = e^x - 1: dx = dy * (y + 1)."""
    return use.grad * (use.result + scalar(1, use.result))


@gradient("pock.log1p")
def log1p(use: Use) -> Expr:
    """y = log(1 + x): dx = dy / (1 + x)."""
    return use.grad / (use.args[0] + scalar(1, use.result))


@gradient("pock.lgamma")
def lgamma(use: Use) -> Expr:
    """y = log |Gamma(x)|: dx = dy * digamma(x)."""
    return use.grad * digamma(use.args[0])


@gradient("pock.root")
def root(use: Use) -> Expr:
    """y = x^(1 / n): dx = dy / (n y^(n - 1)), and 0 where y = 0: the subgradient that PyTorch takes for a norm."""
    y, degree = use.result, float(use.call.attrs["degree"])
    power = y if degree == 2 else R.power(y, scalar(degree - 1, y))
    return R.where(R.equal(y, scalar(0, y)), scalar(0, y), use.grad / (power * scalar(degree, y)))


@gradient("relax.sqrt")
def sqrt(use: Use) -> Expr:
    """y = sqrt(x): dx = dy / (2 y)."""
    return use.grad * scalar(0.5, use.result) / use.result


@gradient("relax.rsqrt")
def rsqrt(use: Use) -> Expr:
    """y = 1 / sqrt(x): dx = -dy * y^3 / 2."""
    y = use.result
    return use.grad * y * y * y * scalar(-0.5, y)


@gradient("relax.square")
def square(use: Use) -> Expr:
    """y = x^2: dx = 2 * dy * x."""
    return use.grad * (use.args[0] * scalar(2, use.result))


@gradient("relax.sin")
def sin(use: Use) -> Expr:
    """y = sin(x): dx = dy * cos(x)."""
    return use.grad * R.cos(use.args[0])


@gradient("relax.cos")
def cos(use: Use) -> Expr:
    """y = cos(x): dx = -dy * sin(x)."""
    return R.negative(use.grad * R.sin(use.args[0]))


@gradient("relax.tanh")
def tanh(use: Use) -> Expr:
    """y = tanh(x): dx = dy * (1 - y^2)."""
    y = use.result
    return use.grad * (scalar(1, y) - y * y)


@gradient("relax.sigmoid")
def sigmoid(use: Use) -> Expr:
    """y = 1 / (1 + e^-x): dx = dy * y * (1 - y)."""
    y = use.result
    return use.grad * y * (scalar(1, y) - y)


@gradient("relax.erf")
def erf(use: Use) -> Expr:
    """y = erf(x): dx = dy * 2 / sqrt(pi) * e^(-x^2)."""
    x = use.args[0]
    return use.grad * R.exp(R.negative(x * x)) * scalar(2 / math.sqrt(math.pi), x)


@gradient("relax.astype")
def astype(use: Use) -> Expr:
    """y = x in another floating-point type: dx = dy in x's type."""
    return R.astype(use.grad, dtype_of(use.args[0]))
