"""A grammar of the symbolic expressions in a ``.pt2`` file, which PyTorch gives to SymPy, which evaluates Python."""

from __future__ import annotations

import ast
import re

LONGEST = 10_000
"""Most characters of an expression."""
DEEPEST = 50
LARGEST = 2**64
"""Integers are smaller."""
MOST_POWERS, HIGHEST_POWER = 4, 16
"""Most powers in an expression, and the highest exponent: results of more than some million bits take long."""

FUNCTIONS = {
    "Add", "Mul", "Pow", "Max", "Min", "Abs", "Mod", "PythonMod", "FloorDiv", "CleanDiv", "CeilDiv", "IntTrueDiv",
    "FloatTrueDiv", "ModularIndexing", "PowByNatural", "CeilToInt", "FloorToInt", "TruncToInt", "RoundToInt", "ToFloat",
    "TruncToFloat", "Identity", "Where", "Integer", "Rational", "floor", "ceiling", "Equality", "Unequality",
    "GreaterThan", "LessThan", "StrictGreaterThan", "StrictLessThan", "And", "Or", "Not",
}  # fmt: skip
"""Functions of integers and truth values, of SymPy and of ``torch.utils._sympy``."""
POWERS = ("Pow", "PowByNatural")
NAME = re.compile(r"[A-Za-z]\w{0,40}", re.ASCII)
DECIMAL = re.compile(r"-?\d{1,20}(\.\d{0,40})?(e[+-]?\d{1,3})?", re.ASCII)
OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Div, ast.Mod, ast.Pow)
COMPARISONS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)


def checked_expression(text: object) -> str:
    """Return an expression of numbers, names, arithmetic, comparisons, Min and Max, spelled anew.

    Raises
    ------
    ValueError
        It is something else, or takes too much time or memory to evaluate.
    """
    if not isinstance(text, str) or len(text) > LONGEST or not text.isascii():
        raise ValueError("it is no short text")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        _check(tree, DEEPEST)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError("it cannot be parsed") from error
    powers = [exponent for node in ast.walk(tree) for exponent in _exponents(node)]
    if not all(map(_is_small, powers)):
        raise ValueError(f"it has a power above {HIGHEST_POWER}")
    if len(powers) > MOST_POWERS:
        raise ValueError("it has many powers")
    return ast.unparse(tree)


def _check(node: ast.expr, depth: int) -> None:
    """Check an expression and those in it, down to a depth."""
    if not depth:
        raise ValueError("it is nested deeply")
    match node:
        case ast.Constant(value=bool()):
            return
        case ast.Constant(value=int(value)) if value < LARGEST:
            return
        case ast.Name(id=name) if NAME.fullmatch(name):
            return
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            _check(operand, depth - 1)
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, OPERATORS):
            _check(left, depth - 1)
            _check(right, depth - 1)
        case ast.Compare(left=left, ops=[op], comparators=[right]) if isinstance(op, COMPARISONS):
            _check(left, depth - 1)
            _check(right, depth - 1)
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))], keywords=keywords):
            if not NAME.fullmatch(name) or not all(
                keyword.arg and isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, bool)
                for keyword in keywords
            ):
                raise ValueError("a symbol has an odd name")
        case ast.Call(
            func=ast.Name(id="Float"),
            args=[ast.Constant(value=str(digits))],
            keywords=[ast.keyword(arg="precision", value=ast.Constant(value=53))],
        ) if DECIMAL.fullmatch(digits):
            return
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            for argument in args:
                _check(argument, depth - 1)
        case _:
            raise ValueError(f"it has a part that is none: {ast.unparse(node)[:60]!r}")


def _exponents(node: ast.AST) -> list[ast.expr]:
    """The exponents of a power."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return [node.right]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in POWERS:
        return node.args[1:]
    return []


def _is_small(node: ast.expr) -> bool:
    """Whether an exponent is a small integer, or one half and the like."""
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _is_small(operand)
        case ast.Call(func=ast.Name(id="Integer" | "Rational"), args=args):
            return all(map(_is_small, args))
        case ast.Constant(value=int(value)):
            return value <= HIGHEST_POWER
        case _:
            return False
