"""Device functions in WGSL, which stores and computes numbers of 32 bits alone.

Integers of 8 and 16 bits and truth values lie in memory as in every other dialect: several in a word. A load takes
one out of its word; a store changes its bits by two atomic operations, since other threads may write the others. Of 64
bits the lower word is loaded, and both are stored: integers beyond 32 bits wrap around.
"""

from __future__ import annotations

import functools
import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import IRModule, ir, tirx
from tvm.ir.prim import expr as prim
from tvm.target import Target

from .limits import OverLimit

MOST_BLOCKS = 65535
"""Most blocks of a launch along an axis."""
INTEGER = re.compile(r"(u?int)(8|16|64)(x\d+)?")
"""Integers of another width than a word's."""
NO_VECTORS = "WGSL has no vectors of numbers that are not of 32 bits"


def spread(grid: tuple[int, ...]) -> tuple[int, ...]:
    """Return a grid whose blocks along x, where they are too many, are spread over z: TVM's text counts them so."""
    x, y, z = grid
    if x <= MOST_BLOCKS:
        return grid
    rows = -(-x // MOST_BLOCKS)
    return -(-x // rows), y, z * rows


def wgsl_of(func: tirx.PrimFunc, blocks: int, target: Target) -> str:
    """Return the text of a device function that is launched with so many blocks along x.

    It begins with TVM's comment ``// Function: <symbol>``. Every operand is bound for reading and writing: a device
    refuses a buffer that one launch binds both ways.

    Raises
    ------
    OverLimit
        The function computes with a type that WGSL lacks.
    """
    symbol = str(func.attrs["global_symbol"])
    words = _Words(func)
    mod = IRModule({symbol: words.function()})
    text = tvm.get_global_func("target.build.webgpu")(mod, target).inspect_source()
    text = text.replace("var<storage, read>", "var<storage, read_write>")
    # TVM passes the number of blocks as an argument, and lets one block too many run.
    text = ARGUMENTS.sub("", text).replace("> podArgs.packGridDimX", f">= {blocks}u")
    helpers = []
    if "workgroupBarrier" in text:  # all threads must be seen to reach it
        text = GUARD.sub(GUARD_TOGETHER, text)
    for binding, how in sorted(words.narrow.items()):
        declared = re.search(rf"@binding\({binding}\) var<storage, read_write> (\w+) : array<(u32)>", text)
        if declared is None:
            raise OverLimit(f"binding {binding} of {symbol} is not an array of words")
        if how.is_written:
            text = f"{text[: declared.start(2)]}atomic<u32>{text[declared.end(2) :]}"
        helpers.append(how.text(declared[1], binding))
    helpers += [text for name, text in NUMBERS.items() if name in words.called]
    return "".join([text, *helpers])


ARGUMENTS = re.compile(
    r"struct PODArgs \{\s*packGridDimX: u32\s*\}\s*@group\(0\) @binding\(\d+\) var<uniform> [^;]*;\n"
)
GUARD = re.compile(r"(?ms)^( *)if \((failed_ptr\[0i\]) == 0i\) \{$(.*)")
"""What a guarded function begins with (``schedules.gpu.lower.guarded``)."""
GUARD_TOGETHER = r"""\1if (all(threadIdx == vec3<u32>())) {
\1  ended = \2;
\1}
\1if (workgroupUniformLoad(&ended) == 0i) {\3
var<workgroup> ended : i32;
"""
NUMBERS = {
    # A shader that computes an infinity or NaN from constants is refused: one factor is a variable.
    "number_of": """
var<private> every_bit : u32 = 4294967295u;
fn number_of(bits : u32) -> f32 { return bitcast<f32>(bits & every_bit); }
""",
    # Compilers of WGSL may assume that there is no NaN, and drop comparisons that find one.
    "is_number": """
fn is_number(x : f32) -> bool { return (bitcast<u32>(x) & 2147483647u) <= 2139095040u; }
""",
}
"""Functions that texts call, by name."""


@dataclass
class _Narrow:
    """Operand whose numbers are narrower than a word."""

    bits: int
    is_written: bool = False

    def text(self, name: str, binding: int) -> str:
        """Return the functions that load and store a number."""
        fraction, mask = 32 // self.bits, (1 << self.bits) - 1
        place = f"u32(at) / {fraction}u"
        word = f"atomicLoad(&{name}[{place}])" if self.is_written else f"{name}[{place}]"
        shift = f"(u32(at) % {fraction}u) * {self.bits}u"
        text = f"\nfn load_{binding}(at : i32) -> u32 {{ return ({word} >> ({shift})) & {mask}u; }}\n"
        if self.is_written:
            text += (
                f"fn store_{binding}(at : i32, value : u32) {{\n"
                f"  let shift = {shift};\n"
                f"  atomicAnd(&{name}[{place}], ~({mask}u << shift));\n"
                f"  atomicOr(&{name}[{place}], (value & {mask}u) << shift);\n"
                "}\n"
            )
        return text


class _Words:
    """Rewriter of one device function to types that WGSL has."""

    def __init__(self, func: tirx.PrimFunc) -> None:
        self._func = func
        self._bindings: dict[tirx.Var, int] = {}
        numbers = {param: number for number, param in enumerate(func.params)}

        def declared(stmt: tirx.DeclBuffer) -> None:
            if stmt.data in numbers:  # the others share what a block or a thread has allocated
                self._bindings[stmt.buffer] = numbers[stmt.data]

        tvm_ffi.structural_walk(func.body, (tirx.DeclBuffer, declared))
        self._vars: dict[tirx.Var, tirx.Var] = {}
        self._stored: dict[tirx.Var, tuple[int, str]] = {}
        """Binding and type of each rewritten operand of another width."""
        self.narrow: dict[int, _Narrow] = {}
        """Operands of numbers narrower than a word, by binding."""
        self.called: set[str] = set()
        """Functions of ``NUMBERS`` that are called."""

    def function(self) -> tirx.PrimFunc:
        """Return the rewritten function."""
        rebuilders: list[tuple[Any, Callable[[Any], Any]]] = [
            (tirx.Cast, lambda node: _cast(node.value, _dtype(node))),
            (tirx.LE, self._at_most),
            (
                tuple(prim.BinaryOpExpr.__subclasses__()),
                lambda node: _wrapped(type(node)(node.a, node.b), _dtype(node)),
            ),
            (prim.BitwiseNot, lambda node: _wrapped(prim.BitwiseNot(node.a), _dtype(node))),
            (tirx.Select, lambda node: tirx.Select(node.condition, node.true_value, node.false_value)),
            (tirx.Let, lambda node: tirx.Let(node.var, node.value, node.body)),
            (tirx.Ramp, lambda node: tirx.Ramp(node.base, node.stride, node.lanes)),
            (tirx.Broadcast, lambda node: tirx.Broadcast(node.value, node.lanes)),
            (tirx.Shuffle, lambda node: tirx.Shuffle(node.vectors, node.indices)),
            (ir.Call, self._call),
            (ir.TensorLoad, self._load),
            (tirx.BufferStore, self._store),
        ]
        leaves = [(tirx.Var, self._var), (tirx.IntImm, self._integer), (tirx.FloatImm, self._number)]
        callbacks: list[tuple[Any, Callable]] = [
            *((kind, _as_it_is(new)) for kind, new in leaves),
            *((kind, _inside_first(new)) for kind, new in rebuilders),
        ]
        body = tvm_ffi.structural_mutate(self._func.body, callbacks)
        params = [self._var(param) for param in self._func.params]
        return tirx.PrimFunc(params, body, self._func.ret_type, self._func.attrs)

    def _var(self, var: tirx.Var) -> tirx.Var:
        if var not in self._vars:
            self._vars[var] = self._renewed(var)
        return self._vars[var]

    def _renewed(self, var: tirx.Var) -> tirx.Var:
        if isinstance(var.ty, ir.PointerType):
            return tirx.Var(var.name, ir.PointerType(ir.PrimType(_memory(str(var.ty.element_type.dtype))), "global"))
        dtype = str(var.ty.dtype)
        if not isinstance(var.ty, type(BUFFER.ty)):
            return tirx.Var(var.name, _register(dtype))
        binding = self._bindings.get(var)
        if binding is None:  # registers, or memory of the block
            return tirx.decl_buffer(var.shape, _register(dtype), var.name, scope=var.scope(), layout=None)
        extent = functools.reduce(lambda a, b: a * b, var.shape)
        if dtype != "bool" and not INTEGER.fullmatch(dtype):
            return tirx.decl_buffer((extent,), _register(dtype), var.name, layout=None)
        bits = _bits(dtype)
        extent = extent * 2 if bits == 64 else (extent + 32 // bits - 1) // (32 // bits)
        new = tirx.decl_buffer((extent,), _memory(dtype), var.name, layout=None)
        self._stored[new] = binding, dtype
        return new

    def _integer(self, node: tirx.IntImm) -> tirx.Expr:
        dtype = _register(_dtype(node))
        if dtype == "bool":
            return node
        least, most = (int(each(dtype).value) for each in (tirx.min_value, tirx.max_value))
        value = int(node.value)
        if _bits(_dtype(node)) == 64 and value in (2**63 - 1, -(2**63)):  # further than any number, in a search
            value = min(max(value, least), most)
        if not least <= value <= most:
            raise OverLimit(f"WGSL has no integer {value}")
        if value == -(2**31):  # a literal is without its sign
            return prim.Sub(tirx.IntImm(dtype, value + 1), tirx.IntImm(dtype, 1))
        return tirx.IntImm(dtype, value)

    def _number(self, node: tirx.FloatImm) -> tirx.Expr:
        if math.isfinite(float(node.value)) or _dtype(node) != "float32":
            return node
        bits = int.from_bytes(struct.pack("<f", float(node.value)), "little")
        return self._extern("float32", "number_of", tirx.const(bits, "uint32"))

    def _at_most(self, node: tirx.LE) -> tirx.Expr:
        if isinstance(node.b, ir.Call) and _callee(node.b) == "number_of" and int(node.b.args[1].value) == INFINITY:
            return self._extern("bool", "is_number", node.a)
        return node

    def _call(self, node: ir.Call) -> tirx.Expr:
        name = getattr(node.op, "name", "")
        if name == "tirx.isnan":
            return tirx.Not(self._extern("bool", "is_number", node.args[0]))
        dtype = str(getattr(node.ty, "dtype", ""))
        if not INTEGER.fullmatch(dtype):
            return node
        if _bits(dtype) != 64 and name == "tirx.reinterpret":
            raise OverLimit(f"WGSL has no {dtype}")
        return ir.Call(node.op, node.args, node.attrs, node.ty_args, ret_ty=_register(dtype))

    def _extern(self, dtype: str, name: str, *args: tirx.Expr) -> tirx.Expr:
        self.called.add(name)
        return tirx.call_extern(dtype, name, *args)

    def _load(self, node: ir.TensorLoad) -> tirx.Expr:
        if node.source not in self._stored:
            return tirx.BufferLoad(node.source, node.indices)
        binding, dtype = self._stored[node.source]
        (index,) = node.indices
        if _bits(dtype) == 64:
            return tirx.BufferLoad(node.source, [index * 2])
        self.narrow.setdefault(binding, _Narrow(_bits(dtype)))

        def loaded(at: tirx.Expr) -> tirx.Expr:
            word = tirx.call_extern("uint32", f"load_{binding}", at)
            if dtype == "bool":
                return word != tirx.const(0, "uint32")
            return word if dtype.startswith("uint") else _cast(word, dtype)

        places = _places(index)
        return (
            loaded(index) if places is None else tirx.Shuffle([loaded(at) for at in places], list(range(len(places))))
        )

    def _store(self, node: tirx.BufferStore) -> tirx.Stmt:
        if node.buffer not in self._stored:
            return tirx.BufferStore(node.buffer, node.value, node.indices)
        binding, dtype = self._stored[node.buffer]
        (index,) = node.indices
        places = _places(index)
        if _bits(dtype) == 64:
            if places is not None:
                raise OverLimit(NO_VECTORS)
            low = tirx.Var("low", "int32")  # the value may read what is written
            words = [tirx.BufferStore(node.buffer, each, [index * 2 + at]) for at, each in enumerate((low, low >> 31))]
            return tirx.SeqStmt([tirx.Bind(low, node.value), *words])
        self.narrow.setdefault(binding, _Narrow(_bits(dtype))).is_written = True

        def stored(at: tirx.Expr, value: tirx.Expr) -> tirx.Stmt:
            return tirx.Evaluate(tirx.call_extern("int32", f"store_{binding}", at, tirx.Cast("uint32", value)))

        if places is None:
            return stored(index, node.value)
        vector = tirx.Var("vector", str(node.value.ty.dtype))
        each = [stored(at, tirx.Shuffle([vector], [lane])) for lane, at in enumerate(places)]
        return tirx.SeqStmt([tirx.Bind(vector, node.value), *each])


def _as_it_is(new: Callable[[Any], Any]) -> Callable:
    return lambda node, _inner: new(node)


def _inside_first(new: Callable[[Any], Any]) -> Callable:
    return lambda node, inner: new(inner.default_mutate(node))


BUFFER = tirx.decl_buffer((1,), "float32")
INFINITY = 0x7F800000
"""Bits of the infinity in float32."""


def _dtype(node: tirx.Expr) -> str:
    """Return the type of an expression as it was before its operands were rewritten."""
    return str(node.ty.dtype)


def _callee(call: ir.Call) -> str:
    """Return the name of the function of WGSL that an expression calls."""
    first = call.args[0] if call.args else None
    return str(first.value) if isinstance(first, ir.StringImm) else ""


def _bits(dtype: str) -> int:
    """Return how many bits a number takes in memory."""
    return 8 if dtype == "bool" else tvm.DataType(dtype).bits


def _register(dtype: str) -> str:
    """Return the type that computes what another type does."""
    if dtype.startswith(("uint64", "float64", "bfloat", "float8", "float4")):
        raise OverLimit(f"WGSL has no {dtype}")
    found = INTEGER.fullmatch(dtype)
    return f"{found[1]}32{found[3] or ''}" if found else dtype


def _memory(dtype: str) -> str:
    """Return the type of the words in memory that hold another type."""
    if dtype == "bool" or (INTEGER.fullmatch(dtype) and _bits(dtype) < 32):
        return "uint32"
    return _register(dtype)


def _places(index: tirx.Expr) -> list[tirx.Expr] | None:
    """Return the places of a vector, whose numbers are loaded or stored one by one; None for a single number."""
    if isinstance(index, tirx.Ramp):
        return [index.base + index.stride * lane for lane in range(int(index.lanes))]
    return [index.value] * int(index.lanes) if isinstance(index, tirx.Broadcast) else None


def _cast(value: tirx.Expr, dtype: str) -> tirx.Expr:
    register = _register(dtype)
    return _wrapped(value if str(value.ty.dtype) == register else _converted(value, register), dtype)


def _converted(value: tirx.Expr, dtype: str) -> tirx.Expr:
    """Return a cast. TVM's text has none of vectors: their numbers are cast one by one."""
    kind, _, lanes = dtype.partition("x")
    if not lanes:
        return tirx.Cast(dtype, value)
    vector = tirx.Var("vector", str(value.ty.dtype))
    each = [tirx.Cast(kind, tirx.Shuffle([vector], [lane])) for lane in range(int(lanes))]
    return tirx.Let(vector, value, tirx.Shuffle(each, list(range(int(lanes)))))


def _wrapped(value: tirx.Expr, dtype: str) -> tirx.Expr:
    """Wrap an integer around as its type does, where that is narrower than a word."""
    found = INTEGER.fullmatch(dtype)
    if not found or found[2] == "64":
        return value
    if found[1] == "uint":
        return value & tirx.const((1 << int(found[2])) - 1, f"uint32{found[3] or ''}")
    shift = tirx.const(32 - int(found[2]), f"int32{found[3] or ''}")
    return (value << shift) >> shift
