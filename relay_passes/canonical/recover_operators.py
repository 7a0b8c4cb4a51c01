"""Recovers normalisation, GELU and SiLU that an exporter decomposed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax
from tvm.relax import op as R

from ..ir import (
    Expr,
    constant_value,
    eliminate_dead,
    made_by,
    normalized_axes,
    op_name,
    rewrite,
    shape_of,
    update_function,
)
from ..operators.registry import plain
from ..operators.training import normalize


@tvm.transform.module_pass(opt_level=0, name="RecoverOperators")
@dataclass(frozen=True)
class RecoverOperators:
    """Replace the decomposed forms of normalisation and activations by one operator each.

    In, out: a dataflow function. ``(x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps)`` and the same without the mean
    become ``normalize``; ``x * (1 + erf(x / sqrt(2))) / 2`` becomes ``gelu`` and ``x * sigmoid(x)`` ``silu``, with
    factors in any order. One operator saves one activation for its gradient; its decomposition would save up to five.
    """

    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        made: dict[relax.Var, relax.Call] = {}

        def visit(_builder: relax.BlockBuilder, _var: relax.Var, value: Expr) -> Expr:
            recovered = (recover(value, made) for recover in (_normalization, _gelu, _silu))
            return next((each for each in recovered if each is not None), value)

        return update_function(mod, self.function, eliminate_dead(rewrite(mod[self.function], visit, made=made)))


Made = Mapping[relax.Var, Expr]


def _operands_of(expr: Expr, operator: str, made: Made) -> list[Expr] | None:
    """The operands of the call that defines ``expr``; None if that calls another operator."""
    value = made_by(made, expr)
    return list(value.args) if op_name(value) == operator else None


def _number(expr: Expr) -> float | None:
    known = constant_value(expr)
    return float(known.reshape(())) if known is not None and known.size == 1 else None


def _is_number(expr: Expr, value: float) -> bool:
    number = _number(expr)
    return number is not None and math.isclose(number, value, rel_tol=1e-5, abs_tol=0)


def _both_orders(args: list[Expr] | None) -> Iterator[tuple[Expr, Expr]]:
    if args is not None:
        yield args[0], args[1]
        yield args[1], args[0]


# ---- normalisation ---------------------------------------------------------------------------------------------------


def _normalization(value: Expr, made: Made) -> Expr | None:
    if op_name(value) == "relax.multiply":
        pairs = [(x, _rsqrt_operands(y, made)) for x, y in _both_orders(list(value.args))]
    elif op_name(value) == "relax.divide":
        pairs = [(value.args[0], _operands_of(value.args[1], "relax.sqrt", made))]
    else:
        return None
    for x, radicand in pairs:
        for mean_square, epsilon in _both_orders(_operands_of(radicand[0], "relax.add", made) if radicand else None):
            axes = _axes_of_mean_square(mean_square, x, made)
            if axes is None or _number(epsilon) is None:
                continue
            source = _source_of_centered(x, axes, made)
            options = {"axes": list(axes), "epsilon": _number(epsilon)}
            return (
                normalize(x, **options, center=False) if source is None else normalize(source, **options, center=True)
            )
    return None


def _rsqrt_operands(expr: Expr, made: Made) -> list[Expr] | None:
    """The operands of ``sqrt`` or ``rsqrt`` where ``expr`` is 1 / sqrt(…); None otherwise."""
    quotient = _operands_of(expr, "relax.divide", made)
    if quotient is not None:
        return _operands_of(quotient[1], "relax.sqrt", made) if _is_number(quotient[0], 1) else None
    return _operands_of(expr, "relax.rsqrt", made)


def _axes_of_mean_square(expr: Expr, x: Expr, made: Made) -> tuple[int, ...] | None:
    """The axes over which ``expr`` is the mean of x^2; None if it is not."""
    squares = _operands_of(expr, "relax.mean", made)
    mean = made_by(made, expr)
    if squares is None or not mean.attrs.keepdims or mean.attrs.axis is None:
        return None
    power, product = _operands_of(squares[0], "relax.power", made), _operands_of(squares[0], "relax.multiply", made)
    square = _operands_of(squares[0], "relax.square", made)
    is_square = (
        (power is not None and power[0].same_as(x) and _is_number(power[1], 2))
        or (product is not None and product[0].same_as(x) and product[1].same_as(x))
        or (square is not None and square[0].same_as(x))
    )
    return normalized_axes(plain(mean.attrs.axis), len(shape_of(x))) if is_square else None


def _source_of_centered(x: Expr, axes: tuple[int, ...], made: Made) -> Expr | None:
    """The tensor t for which ``x`` is t - mean(t) over ``axes``; None if there is none."""
    difference = _operands_of(x, "relax.subtract", made)
    if difference is None:
        return None
    mean = made_by(made, difference[1])
    if op_name(mean) != "relax.mean" or not mean.args[0].same_as(difference[0]) or mean.attrs.axis is None:
        return None
    same_axes = normalized_axes(plain(mean.attrs.axis), len(shape_of(x))) == axes
    return difference[0] if same_axes and mean.attrs.keepdims else None


# ---- activations -----------------------------------------------------------------------------------------------------


def _gelu(value: Expr, made: Made) -> Expr | None:
    """Match ``x * (1 + erf(x / sqrt(2))) * 0.5``, its three factors in any order."""
    if op_name(value) != "relax.multiply":
        return None
    for left, right in _both_orders(list(value.args)):
        for inner, outer in _both_orders(_operands_of(left, "relax.multiply", made)):
            factors = (inner, outer, right)
            for x in factors:
                rest = [factor for factor in factors if factor is not x]
                halves = [factor for factor in rest if _is_number(factor, 0.5)]
                others = [factor for factor in rest if not _is_number(factor, 0.5)]
                if len(halves) == 1 and len(others) == 1 and _is_one_plus_erf(others[0], x, made):
                    return R.nn.gelu(x)
    return None


def _is_one_plus_erf(expr: Expr, x: Expr, made: Made) -> bool:
    for one, erf in _both_orders(_operands_of(expr, "relax.add", made)):
        argument = _operands_of(erf, "relax.erf", made)
        if argument is None or not _is_number(one, 1):
            continue
        quotient, product = (
            _operands_of(argument[0], "relax.divide", made),
            _operands_of(argument[0], "relax.multiply", made),
        )
        if quotient is not None and quotient[0].same_as(x) and _is_number(quotient[1], math.sqrt(2)):
            return True
        if any(a.same_as(x) and _is_number(b, math.sqrt(0.5)) for a, b in _both_orders(product)):
            return True
    return False


def _silu(value: Expr, made: Made) -> Expr | None:
    if op_name(value) != "relax.multiply":
        return None
    for x, y in _both_orders(list(value.args)):
        sigmoid = _operands_of(y, "relax.sigmoid", made)
        if sigmoid is not None and sigmoid[0].same_as(x):
            return R.nn.silu(x)
    return None
