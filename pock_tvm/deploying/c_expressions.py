"""Prints the expressions of lowered loops as C11."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from tvm import DataType, ir, tirx
from tvm.target import codegen as llvm

from ..errors import BuildError
from .c_operators import CONDITIONAL, INFIX, UNARY, Text, inside
from .c_types import (
    INDICES,
    SCALARS,
    SHORT,
    WRAPPING,
    Names,
    c_type,
    dtype_of,
    element,
    float_text,
    integer_text,
    vector,
)

WIDTH = 110
"""Longest expression in one line. Parts of longer ones get names of their own."""


WRAPPED = {"add", "sub", "mul", "shl"}
"""Operators whose result may be out of range, for signed integers."""
MATHS = {"ceil", "cos", "exp", "exp2", "fabs", "floor", "log", "log10", "log2", "nearbyint", "pow", "round", "sin"}
MATHS |= {"sqrt", "tanh", "trunc"}
"""LLVM's intrinsics ``llvm.<name>`` that <math.h> has, and pock_vector.h by lanes."""


class Memory(NamedTuple):
    """Memory behind a name: a pointer to, or an array of, elements of a dtype."""

    name: str
    dtype: DataType
    """Of one element of the buffer in loop IR: perhaps a vector."""
    is_array_of_vectors: bool = False
    """Whether the elements are vectors in C, too; else a vector is a run of scalars."""


class Expressions:
    """Printer of expressions. What has no expression in C, it writes as statements into ``lines``."""

    def __init__(self, kernel: str) -> None:
        self.kernel = kernel
        self.names = Names()
        self.lines: list[str] = []
        self.depth = 1
        self.lanes: set[int] = set()
        """Lengths of the vectors of the kernel."""
        self.scope: dict[str, str] = {}
        """The C types of the variables declared so far, by name."""
        self._values: dict[tirx.Var, str] = {}
        self._memory: dict[tirx.Var, Memory] = {}
        self._positions: set[tirx.Var] = set()
        self._wraps = False

    def unknown(self, what: object) -> BuildError:
        """Make the error for a node that has no form in C."""
        return BuildError(
            f"the kernel {self.kernel} cannot be written as C: '{what}' is unknown there. Deploy its object instead "
            "(without --source), and report the fault"
        )

    def emit(self, line: str) -> None:
        """Write a line."""
        self.lines.append("    " * self.depth + line)

    # What statements ask for.

    def value(self, expr: tirx.Expr) -> str:
        """Print a value that is stored, or bound: integers wrap around."""
        with self._wrapping(True):
            return self._print(expr).text

    def index(self, expr: tirx.Expr) -> str:
        """Print an index, an extent or a condition, which is in range."""
        with self._wrapping(False):
            return self._print(expr).text

    def declare(self, var: tirx.Var, *, is_position: bool = False) -> str:
        """Name a new number; ``is_position``: a loop variable, or what depends on such alone."""
        if is_position:
            self._positions.add(var)
        self._values[var] = self._new(var.name, c_type(self._known(dtype_of(var))))
        return self._values[var]

    def declare_memory(
        self, buffer: tirx.Var, kind: str = "", *, name: str = "", is_array_of_vectors: bool = False
    ) -> str:
        """Name the memory of a buffer; without a ``kind``, its type in C, it is known under a ``name`` already."""
        name = name or self._new(buffer.name.removesuffix("_local").removesuffix("_intermediate"), kind)
        self._memory[buffer] = Memory(name, DataType(str(buffer.dtype)), is_array_of_vectors)
        return name

    def _new(self, hint: str, kind: str) -> str:
        name = self.names.unique(hint)
        self.scope[name] = kind
        return name

    def bind(self, var: tirx.Var, value: tirx.Expr) -> None:
        """Write the declaration of a constant."""
        text = self.value(value)
        name = self.declare(var, is_position=self._is_position(value))
        self.emit(f"const {self.scope[name]} {name} = {text};")

    def address(self, memory: Memory, place: tirx.Expr) -> str:
        """Print the address of an element."""
        place_text = self._place(memory, place)
        return memory.name if place_text == "0" else f"&{memory.name}[{place_text}]"

    def element(self, memory: Memory, place: tirx.Expr) -> str:
        """Print an element."""
        return f"{memory.name}[{self._place(memory, place)}]"

    def _place(self, memory: Memory, place: tirx.Expr) -> str:
        """Print an index into memory, which C counts in scalars where vectors are runs of them."""
        with self._wrapping(False):
            index = self._print(place)
        if len(index.text) > WIDTH // 2:
            index = self._named(index, dtype_of(place))
        if memory.is_array_of_vectors or memory.dtype.lanes == 1:
            return index.text
        return "0" if index.text == "0" else f"{memory.dtype.lanes} * {inside(index, 2, is_right=True)}"

    def memory(self, buffer: tirx.Var) -> Memory:
        """Return where a buffer lies."""
        found = self._memory.get(buffer)
        if found is None:
            raise self.unknown(f"buffer {buffer.name}")
        return found

    # Printing.

    def _print(self, expr: tirx.Expr) -> Text:
        printer: Callable[[tirx.Expr], Text] | None = getattr(self, f"_{type(expr).__name__}", None)
        if printer is None and type(expr).__name__ in INFIX:
            return self._infix(expr)
        if printer is None:
            raise self.unknown(type(expr).__name__)
        return printer(expr)

    def _known(self, dtype: DataType) -> DataType:
        """Check a dtype, and note its lanes."""
        if element(dtype) not in SHORT:
            raise self.unknown(dtype)
        if dtype.lanes > 1:
            self.lanes.add(dtype.lanes)
        return dtype

    @contextlib.contextmanager
    def _wrapping(self, wraps: bool) -> Iterator[None]:
        before, self._wraps = self._wraps, wraps
        try:
            yield
        finally:
            self._wraps = before

    def _call(self, function: str, *arguments: tirx.Expr) -> Text:
        """Print a call, with names for the longest arguments if it is too long."""
        printed = [self._print(argument) for argument in arguments]
        return self._called(function, printed, [dtype_of(argument) for argument in arguments])

    def _called(self, function: str, printed: list[Text], dtypes: Sequence[DataType]) -> Text:
        while len(function) + sum(len(each.text) + 2 for each in printed) > WIDTH:
            longest = max(range(len(printed)), key=lambda at: len(printed[at].text))
            if printed[longest].text.isidentifier():
                break
            printed[longest] = self._named(printed[longest], dtypes[longest])
        return Text(f"{function}({', '.join(each.text for each in printed)})")

    def _named(self, printed: Text, dtype: DataType) -> Text:
        name = self._new("v", c_type(dtype))
        self.emit(f"const {c_type(dtype)} {name} = {printed.text};")
        return Text(name)

    def _infix(self, expr: tirx.Expr) -> Text:
        symbol, level, name = INFIX[type(expr).__name__]
        dtype, result = self._known(dtype_of(expr.a)), dtype_of(expr)
        if name == "lt" and (mask := _mask_above_zero(expr)) is not None:
            return self._print(mask)
        if dtype.lanes > 1:
            return self._call(f"{vector(dtype)}_{name}", expr.a, expr.b)
        if str(dtype) in WRAPPING and name in WRAPPED and (name == "shl" or self._may_wrap(expr)):
            return self._call(f"{SHORT[str(dtype)]}_{name}", expr.a, expr.b)
        left, right = self._print(expr.a), self._print(expr.b)
        if len(left.text) + len(right.text) > WIDTH:
            left, right = (self._named(each, dtype) if len(each.text) > WIDTH // 2 else each for each in (left, right))
        printed = Text(f"{inside(left, level)} {symbol} {inside(right, level, is_right=True)}", level)
        is_narrow = str(result) in SHORT and str(result) not in WRAPPING and "int" in str(result)
        return Text(f"({SCALARS[str(result)]})({printed.text})", UNARY) if is_narrow else printed

    def _may_wrap(self, expr: tirx.Expr) -> bool:
        """Return whether a value may be out of range: one that is not computed from loop variables alone."""
        return self._wraps and not self._is_position(expr)

    def _is_position(self, expr: tirx.Expr) -> bool:
        if isinstance(expr, tirx.Cast):
            return self._is_position(expr.value)
        if isinstance(expr, tirx.Var):
            return expr in self._positions
        if type(expr).__name__ in INFIX:
            return self._is_position(expr.a) and self._is_position(expr.b)
        return isinstance(expr, tirx.IntImm)

    def _Min(self, expr: tirx.Min) -> Text:
        return self._order("min", expr)

    def _Max(self, expr: tirx.Max) -> Text:
        return self._order("max", expr)

    def _order(self, name: str, expr: tirx.Expr) -> Text:
        dtype = self._known(dtype_of(expr))
        return self._call(f"{vector(dtype) if dtype.lanes > 1 else SHORT[str(dtype)]}_{name}", expr.a, expr.b)

    def _Not(self, expr: tirx.Not) -> Text:
        return self._negation(expr.a)

    def _negation(self, condition: tirx.Expr) -> Text:
        dtype = self._known(dtype_of(condition))
        if dtype.lanes > 1:
            return self._call(f"{vector(dtype)}_not", condition)
        return Text(f"!{inside(self._print(condition), UNARY)}", UNARY)

    def _Var(self, expr: tirx.Var) -> Text:
        name = self._values.get(expr)
        if name is None:
            raise self.unknown(f"variable {expr.name}")
        return Text(name)

    def _IntImm(self, expr: tirx.IntImm) -> Text:
        if str(expr.ty.dtype) == "bool":
            return Text("true" if int(expr) else "false")
        text = integer_text(int(expr))
        return Text(text, UNARY if text.startswith("-") else 0)

    def _FloatImm(self, expr: tirx.FloatImm) -> Text:
        text = float_text(float(expr.value), str(self._known(dtype_of(expr))))
        return Text(text, UNARY if text.startswith("-") else 0)

    def _Broadcast(self, expr: tirx.Broadcast) -> Text:
        return self._call(f"{vector(self._known(dtype_of(expr)))}_of", expr.value)

    def _Ramp(self, expr: tirx.Ramp) -> Text:
        return self._call(f"{vector(self._known(dtype_of(expr)))}_ramp", expr.base, expr.stride)

    def _Shuffle(self, expr: tirx.Shuffle) -> Text:
        dtype, lanes = self._known(dtype_of(expr)), [int(lane) for lane in expr.indices]
        sources = [str(dtype_of(source)) for source in expr.vectors]
        if element(dtype) != "float32" or sources != [str(dtype)] * 2:
            raise self.unknown(f"Shuffle of {', '.join(sources)}")
        printed = self._called("", [self._print(each) for each in expr.vectors], [dtype, dtype]).text
        return Text(f"pock_shuffle({vector(dtype)}, {printed[1:-1]}, {', '.join(map(str, lanes))})")

    def _Cast(self, expr: tirx.Cast) -> Text:
        dtype, source = self._known(dtype_of(expr)), self._known(dtype_of(expr.value))
        if dtype == source:
            return self._print(expr.value)
        if dtype.lanes > 1:
            return self._call(f"{vector(dtype)}_from_{SHORT[element(source)]}", expr.value)
        if str(source).startswith("float") and "int" in str(dtype):
            return self._call(f"{SHORT[str(dtype)]}_from_{SHORT[str(source)]}", expr.value)
        return Text(f"({SCALARS[str(dtype)]}){inside(self._print(expr.value), UNARY)}", UNARY)

    def _Let(self, expr: tirx.Let) -> Text:
        self.bind(expr.var, expr.value)
        return self._print(expr.body)

    def _Select(self, expr: tirx.Select) -> Text:
        dtype = self._known(dtype_of(expr))
        if _is_bool(expr.true_value, False) and _is_bool(expr.false_value, True):
            return self._negation(expr.condition)
        if dtype.lanes > 1 and dtype_of(expr.condition).lanes > 1:
            return self._call(f"{vector(dtype)}_select", expr.condition, expr.true_value, expr.false_value)
        return self._conditional(expr.condition, expr.true_value, expr.false_value)

    def _conditional(self, condition: tirx.Expr, true: tirx.Expr, false: tirx.Expr) -> Text:
        """Print a choice of which one branch alone is computed: with statements, if one needs any."""
        dtype = self._known(dtype_of(true))
        with self._wrapping(False):
            test = self._print(condition)
        branches = [self._branch(each) for each in (true, false)]
        if not any(lines for lines, _ in branches):
            texts = [inside(each, CONDITIONAL, is_right=True) for each in (test, *(text for _, text in branches))]
            printed = f"{texts[0]} ? {texts[1]} : {texts[2]}"
            if len(printed) <= WIDTH:
                return Text(printed, CONDITIONAL)
        name = self._new("v", c_type(dtype))
        self.emit(f"{c_type(dtype)} {name};")
        self.emit(f"if ({test.text}) {{")
        for end, (lines, text) in zip(("} else {", "}"), branches, strict=True):
            self.lines += lines
            self.emit(f"    {name} = {text.text};")
            self.emit(end)
        return Text(name)

    def _branch(self, expr: tirx.Expr) -> tuple[list[str], Text]:
        """Print an expression apart from the statements that it needs."""
        outside, self.lines = self.lines, []
        self.depth += 1
        text = self._print(expr)
        self.depth -= 1
        lines, self.lines = self.lines, outside
        return lines, text

    def _TensorLoad(self, expr: ir.TensorLoad) -> Text:
        memory, dtype = self.memory(expr.source), self._known(dtype_of(expr))
        (place,) = expr.indices
        if dtype.lanes == 1 or memory.is_array_of_vectors:
            if dtype != memory.dtype:
                raise self.unknown(expr)
            return Text(self.element(memory, place))
        return Text(self.access(memory, dtype, place, "load", "gather"))

    def access(
        self, memory: Memory, dtype: DataType, place: tirx.Expr, run: str, apart: str, value: str | None = None
    ) -> str:
        """Print a call that loads or stores a vector: ``run`` in a row or at a stride, ``apart`` anywhere."""
        prefix, last = vector(dtype), [] if value is None else [value]
        if memory.dtype.lanes > 1 and dtype == memory.dtype:
            arguments = [self.address(memory, place)]
        elif memory.dtype.lanes > 1 or element(dtype) != str(memory.dtype):
            raise self.unknown(f"{memory.name} as {dtype}")
        elif isinstance(place, tirx.Ramp):
            stride = self.index(place.stride)
            arguments = [self.address(memory, place.base)]
            if stride != "1":
                run, arguments = f"{run}_strided", [*arguments, stride]
        elif element(dtype_of(place)) in INDICES:
            run = f"{apart}_by_{SHORT[element(dtype_of(place))]}"
            arguments = [memory.name, self.index(place)]
        else:
            raise self.unknown(f"{apart} by {dtype_of(place)}")
        return f"{prefix}_{run}({', '.join([*arguments, *last])})"

    def _Call(self, expr: ir.Call) -> Text:
        name, arguments = expr.op.name, list(expr.args)
        if name == "tirx.call_llvm_pure_intrin":
            return self._intrinsic(expr, llvm.llvm_get_intrinsic_name(int(arguments[0])), arguments[1:])
        if name == "prim.if_then_else":
            return self._conditional(*arguments)
        if name == "tirx.reinterpret":
            return self._reinterpreted(expr)
        if name == "tirx.call_pure_extern" and dtype_of(expr).lanes == 1:
            return self._call(str(arguments[0].value), *arguments[1:])
        if name in ("tirx.likely", "prim.likely"):
            return self._print(arguments[0])
        raise self.unknown(name)

    def _intrinsic(self, expr: ir.Call, name: str, arguments: list[tirx.Expr]) -> Text:
        dtype, function = self._known(dtype_of(expr)), name.removeprefix("llvm.")
        if function == "fmuladd":
            return self._call(f"{vector(dtype) if dtype.lanes > 1 else SHORT[str(dtype)]}_fma", *arguments)
        if function not in MATHS:
            raise self.unknown(name)
        if dtype.lanes > 1:
            return self._call(f"{vector(dtype)}_{function}", *arguments)
        return self._call(function + ("f" if str(dtype) == "float32" else ""), *arguments)

    def _reinterpreted(self, expr: ir.Call) -> Text:
        dtype, (value,) = self._known(dtype_of(expr)), expr.args
        source = self._known(dtype_of(value))
        with self._wrapping(True):
            if dtype == source:
                return self._print(value)
            if {element(dtype), element(source)} not in ({"int32", "float32"}, {"int64", "float64"}):
                raise self.unknown(f"reinterpret of {source} as {dtype}")
            prefix = vector(dtype) if dtype.lanes > 1 else SHORT[str(dtype)]
            return self._call(f"{prefix}_bits_of_{SHORT[element(source)]}", value)


def _is_bool(expr: tirx.Expr, value: bool) -> bool:
    """Return whether an expression is a constant bool, in all its lanes."""
    expr = expr.value if isinstance(expr, tirx.Broadcast) else expr
    return isinstance(expr, tirx.IntImm) and str(expr.ty.dtype) == "bool" and bool(int(expr)) == value


def _mask_above_zero(expr: tirx.LT) -> tirx.Expr | None:
    """Return the bool of ``0 < cast(bool)``, as ``where`` asks for it; None for other comparisons."""
    zero = expr.a.value if isinstance(expr.a, tirx.Broadcast) else expr.a
    if isinstance(zero, tirx.IntImm) and int(zero) == 0 and isinstance(expr.b, tirx.Cast):
        return expr.b.value if element(dtype_of(expr.b.value)) == "bool" else None
    return None
