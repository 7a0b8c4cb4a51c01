"""Comparisons, truth values, bits, and choices by them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, is_float

from .registry import Number, Site, Unsupported, converter

COMPARISONS = {
    "eq": R.equal,
    "ne": R.not_equal,
    "lt": R.less,
    "le": R.less_equal,
    "gt": R.greater,
    "ge": R.greater_equal,
}


def _comparison(operator: Callable[[Expr, Expr], Expr]) -> Callable[..., Expr]:
    def convert(at: Site, x: Expr, other: Expr | Number) -> Expr:
        return at.emit(operator(*at.promoted(x, other)))

    return convert


for _name, _operator in COMPARISONS.items():
    converter(f"{_name}.Tensor", f"{_name}.Scalar")(_comparison(_operator))


def _logical(operator: Callable[..., Expr]) -> Callable[..., Expr]:
    def convert(at: Site, x: Expr, other: Expr) -> Expr:
        return at.emit(operator(at.cast(x, "bool"), at.cast(other, "bool")))

    return convert


for _name, _operator in {"and": R.logical_and, "or": R.logical_or, "xor": R.logical_xor}.items():
    converter(f"logical_{_name}.default")(_logical(_operator))


@converter("logical_not.default")
def logical_not(at: Site, x: Expr) -> Expr:
    """``x == 0``."""
    return at.emit(R.logical_not(at.cast(x, "bool")))


BITS = {
    "and": (R.bitwise_and, R.logical_and),
    "or": (R.bitwise_or, R.logical_or),
    "xor": (R.bitwise_xor, R.logical_xor),
}


def _bitwise(of_integers: Callable[..., Expr], of_truth: Callable[..., Expr]) -> Callable[..., Expr]:
    def convert(at: Site, x: Expr, other: Expr | Number) -> Expr:
        operator = of_truth if at.dtype == "bool" else of_integers
        return at.emit(operator(at.cast(x), at.cast(other)))

    return convert


for _name, _pair in BITS.items():
    converter(f"bitwise_{_name}.Tensor", f"bitwise_{_name}.Scalar")(_bitwise(*_pair))
    converter(f"__{_name}__.Tensor", f"__{_name}__.Scalar")(_bitwise(*_pair))


def _shifted(operator: Callable[[Expr, Expr], Expr]) -> Callable[..., Expr]:
    def convert(at: Site, x: Expr, other: Number) -> Expr:
        if not 0 <= other < np.dtype(at.dtype).itemsize * 8:
            raise Unsupported(f"by {other} bits is not supported: {at.dtype} has fewer")
        return at.emit(operator(at.cast(x), at.cast(other)))

    return convert


for _name, _shift in {"left": R.left_shift, "right": R.right_shift}.items():
    converter(f"bitwise_{_name}_shift.Tensor_Scalar", f"__{_name[0]}shift__.Scalar")(_shifted(_shift))


@converter("bitwise_not.default")
def bitwise_not(at: Site, x: Expr) -> Expr:
    """Bitwise not; logical not for booleans."""
    return at.emit(R.logical_not(x) if at.dtype == "bool" else R.bitwise_not(x))


def _classified(operator: Callable[[Expr], Expr], of_integers: bool) -> Callable[..., Expr]:
    def convert(at: Site, x: Expr) -> Expr:
        return at.emit(operator(x)) if is_float(x) else relax.const(np.full(at.shape, of_integers), "bool")

    return convert


for _name, (_operator, _integers) in {
    "isnan": (R.isnan, False),
    "isinf": (R.isinf, False),
    "isfinite": (R.isfinite, True),
}.items():
    converter(f"{_name}.default")(_classified(_operator, _integers))


@converter("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def where(at: Site, condition: Expr, x: Expr | Number, other: Expr | Number) -> Expr:
    """Select x where the condition holds, else ``other``."""
    return at.emit(R.where(at.cast(condition, "bool"), at.cast(x), at.cast(other)))


@converter("masked_fill.Scalar", "masked_fill.Tensor")
def masked_fill(at: Site, x: Expr, mask: Expr, value: Expr | Number) -> Expr:
    """Select ``value`` where the mask holds, else x."""
    return at.emit(R.where(at.cast(mask, "bool"), at.cast(value), x))
