"""Trigonometric and hyperbolic functions and their inverses. (Sine, cosine and tanh are in ``elementwise``.)"""

from __future__ import annotations

from tvm.relax import op as R

from ..ir import Expr, scalar
from .broadcasting import to_operand
from .registry import Use, gradient


@gradient("relax.tan")
def tan(use: Use) -> Expr:
    """y = tan(x): dx = dy * (1 + y^2)."""
    y = use.result
    return use.grad * (scalar(1, y) + y * y)


@gradient("relax.sinh")
def sinh(use: Use) -> Expr:
    """y = sinh(x): dx = dy * cosh(x)."""
    return use.grad * R.cosh(use.args[0])


@gradient("relax.cosh")
def cosh(use: Use) -> Expr:
    """y = cosh(x): dx = dy * sinh(x)."""
    return use.grad * R.sinh(use.args[0])


@gradient("relax.asin")
def asin(use: Use) -> Expr:
    """y = asin(x): dx = dy / sqrt(1 - x^2)."""
    x = use.args[0]
    return use.grad / R.sqrt(scalar(1, x) - x * x)


@gradient("relax.acos")
def acos(use: Use) -> Expr:
    """y = acos(x): dx = -dy / sqrt(1 - x^2)."""
    x = use.args[0]
    return R.negative(use.grad / R.sqrt(scalar(1, x) - x * x))


@gradient("relax.atan")
def atan(use: Use) -> Expr:
    """y = atan(x): dx = dy / (1 + x^2)."""
    x = use.args[0]
    return use.grad / (scalar(1, x) + x * x)


@gradient("relax.asinh")
def asinh(use: Use) -> Expr:
    """y = asinh(x): dx = dy / sqrt(1 + x^2)."""
    x = use.args[0]
    return use.grad / R.sqrt(scalar(1, x) + x * x)


@gradient("relax.acosh")
def acosh(use: Use) -> Expr:
    """y = acosh(x): dx = dy / sqrt(x^2 - 1)."""
    x = use.args[0]
    return use.grad / R.sqrt(x * x - scalar(1, x))


@gradient("relax.atanh")
def atanh(use: Use) -> Expr:
    """y = atanh(x): dx = dy / (1 - x^2)."""
    x = use.args[0]
    return use.grad / (scalar(1, x) - x * x)


@gradient("relax.atan2", 0)
def atan2_height(use: Use) -> Expr:
    """z = angle of (x, y), the first operand being y: dy = dz * x / (x^2 + y^2), and 0 at the origin."""
    return to_operand(use, 0, use.grad * _over_square(use, use.args[1]))


@gradient("relax.atan2", 1)
def atan2_width(use: Use) -> Expr:
    """z = angle of (x, y): dx = -dz * y / (x^2 + y^2), and 0 at the origin."""
    return R.negative(to_operand(use, 1, use.grad * _over_square(use, use.args[0])))


def _over_square(use: Use, side: Expr) -> Expr:
    """A side of a triangle over the square of its hypotenuse; 0 where that is 0."""
    y, x = use.args
    square, zero = x * x + y * y, scalar(0, use.result)
    return R.where(R.equal(square, zero), zero, side / square)
