"""Spells dtypes, constants and names of loop IR in C11, for ``runtime/pock_vector.h``."""

from __future__ import annotations

import math
import re

import numpy as np
from tvm import DataType, tirx

SHORT = {
    "bool": "b32", "int8": "i8", "uint8": "u8", "int16": "i16", "uint16": "u16", "int32": "i32", "uint32": "u32",
    "int64": "i64", "uint64": "u64", "float32": "f32", "float64": "f64",
}  # fmt: skip
"""Prefixes of the functions of pock_vector.h, by dtype. A bool in a vector has 32 bits."""
SCALARS = {
    "bool": "bool", "int8": "int8_t", "uint8": "uint8_t", "int16": "int16_t", "uint16": "uint16_t",
    "int32": "int32_t", "uint32": "uint32_t", "int64": "int64_t", "uint64": "uint64_t", "float32": "float",
    "float64": "double",
}  # fmt: skip
WRAPPING = ("uint16", "int32", "int64")
"""Dtypes whose overflow is undefined in C, and wraps around in loop IR. Products of narrower ones fit an int."""
INDICES = ("int32", "int64")
"""Dtypes of vectors of indices."""
KEYWORDS = """
auto bool break case char const continue default do double else enum extern false float for goto if inline int long
register restrict return short signed sizeof static struct switch true typedef union unsigned void volatile while
abs ceil cos erf exp fabs floor fma fmax fmin log pow round sin sqrt tan tanh trunc y0 y1 yn j0 j1 jn
task group data first end operands
"""
"""Names that mean something else in the text: C's own, those of <math.h>, and those of every task."""


def dtype_of(node: tirx.Expr) -> DataType:
    """Return the dtype of an expression."""
    return DataType(str(node.ty.dtype))


def element(dtype: DataType) -> str:
    """Return the dtype of one lane."""
    return str(dtype.with_lanes(1))


def vector(dtype: DataType) -> str:
    """Return the C type of a vector, which is also the prefix of its functions: ``f32x8``."""
    return f"{SHORT[element(dtype)]}x{dtype.lanes}"


def c_type(dtype: DataType) -> str:
    """Return the C type of a value."""
    return SCALARS[str(dtype)] if dtype.lanes == 1 else vector(dtype)


def stored_type(dtype: str) -> str:
    """Return the C type of an element in memory, where a bool is a byte."""
    return "uint8_t" if dtype == "bool" else SCALARS[dtype]


def float_text(value: float, dtype: str) -> str:
    """Return an exact constant: decimal if that is short, else hexadecimal."""
    if math.isnan(value):
        return "NAN"
    if math.isinf(value):
        return "INFINITY" if value > 0 else "-INFINITY"
    value = float(np.float32(value)) if dtype == "float32" else value
    decimal, suffix = f"{value:.4f}".rstrip("0"), "f" if dtype == "float32" else ""
    if float(decimal) == value and abs(value) < SHORT_DECIMALS:
        return f"{decimal}0{suffix}" if decimal.endswith(".") else f"{decimal}{suffix}"
    mantissa, _, exponent = value.hex().partition("p")
    mantissa = mantissa.rstrip("0") if "." in mantissa else mantissa
    return f"{mantissa.rstrip('.')}p{exponent}{suffix}"


SHORT_DECIMALS = 1e6
"""Numbers below this with at most four decimals are written in decimal."""


def integer_text(value: int) -> str:
    """Return an integer constant."""
    if value == -(2**31):
        return "INT32_MIN"
    if value == -(2**63):
        return "INT64_MIN"
    return str(value) if -(2**31) < value < 2**31 else f"INT64_C({value})"


class Names:
    """C names of variables, unique within one kernel."""

    def __init__(self) -> None:
        self._taken = set(KEYWORDS.split())

    def unique(self, hint: str) -> str:
        """Return a name like the hint that nothing else has."""
        base = re.sub(r"\W", "_", hint, flags=re.ASCII).strip("_") or "x"
        if base[0].isdigit() or base.startswith("pock_"):
            base = f"x_{base}"
        name, count = base, 1
        while name in self._taken:
            count += 1
            name = f"{base}_{count}"
        self._taken.add(name)
        return name
