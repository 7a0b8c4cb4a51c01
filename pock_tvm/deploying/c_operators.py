"""Operators of C: how tightly they bind, and where parentheses belong."""

from __future__ import annotations

from typing import NamedTuple


class Text(NamedTuple):
    """An expression in C, and how tightly its outermost operator binds: 0 is a name or a call."""

    text: str
    level: int = 0


class Infix(NamedTuple):
    """An operator: as C writes it, how tightly it binds, and its name in pock_vector.h."""

    symbol: str
    level: int
    name: str


UNARY, AND, OR, CONDITIONAL = 1, 10, 11, 12
BITWISE = (4, 7, 8, 9)
"""Levels of operators whose precedence few know: compilers warn without parentheses."""
INFIX = {
    "Mul": Infix("*", 2, "mul"),
    "Div": Infix("/", 2, "div"),
    "Mod": Infix("%", 2, "mod"),
    "Add": Infix("+", 3, "add"),
    "Sub": Infix("-", 3, "sub"),
    "LShift": Infix("<<", 4, "shl"),
    "RShift": Infix(">>", 4, "shr"),
    "LT": Infix("<", 5, "lt"),
    "LE": Infix("<=", 5, "le"),
    "GT": Infix(">", 5, "gt"),
    "GE": Infix(">=", 5, "ge"),
    "EQ": Infix("==", 6, "eq"),
    "NE": Infix("!=", 6, "ne"),
    "BitwiseAnd": Infix("&", 7, "and"),
    "BitwiseXor": Infix("^", 8, "xor"),
    "BitwiseOr": Infix("|", 9, "or"),
    "And": Infix("&&", AND, "and"),
    "Or": Infix("||", OR, "or"),
}


def inside(printed: Text, level: int, *, is_right: bool = False) -> str:
    """Put an operand of an operator into parentheses, where C wants them, or compilers warn without."""
    looser = printed.level > level or (is_right and printed.level == level and level < AND)
    if level in BITWISE:
        confusing = printed.level > UNARY
    else:
        confusing = printed.level in BITWISE or (level, printed.level) == (OR, AND)
    return f"({printed.text})" if looser or confusing else printed.text
