"""Prints a lowered kernel as C11: a function of pointers, and one for the tasks of each parallel loop."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import tvm_ffi
from tvm import DataType, ir, tirx
from tvm.target import codegen as llvm

from .c_expressions import WIDTH, Expressions
from .c_types import c_type, dtype_of, element, stored_type, vector

DEVICE = {"device_type", "device_id"}
"""Attributes of loop IR that say where its statements run."""


class KernelText(NamedTuple):
    """A kernel in C."""

    prototype: str
    """Its declaration, without a semicolon."""
    definition: str
    """Its function, behind those of its parallel loops."""
    lanes: tuple[int, ...]
    """Lengths of the vectors that it needs."""


def print_kernel(func: tirx.PrimFunc) -> KernelText:
    """Print a lowered kernel, as it goes to LLVM (:meth:`schedules.target.Target.lower`), as C.

    Raises
    ------
    BuildError
        A statement, an expression or a dtype has no form in C.
    """
    return _Kernel(str(func.attrs["global_symbol"])).printed(func)


class _Kernel(Expressions):
    """Printer of one kernel."""

    def __init__(self, kernel: str) -> None:
        super().__init__(kernel)
        self._functions: list[str] = []
        self._pointers: dict[tirx.Var, str] = {}
        self._written: set[str] = set()
        self._tiles: dict[str, tuple[tirx.Var, int]] = {}
        """Arrays of vectors, which loops accumulate into, with their extents, by name."""
        self._restrict = ""

    def printed(self, func: tirx.PrimFunc) -> KernelText:
        """Print the kernel."""
        self._restrict = "restrict " if func.attrs.get("tirx.noalias") else ""
        for param in func.params:
            kind = f"{stored_type(str(self._known(DataType(str(param.ty.element_type.dtype)))))} *"
            self._pointers[param] = self._new(param.name.removesuffix("_ptr"), kind)
        self._statement(func.body)
        prototype = _signature(f"int {self.kernel}", self._parameters(self._pointers.values()))
        lines, used = _without_unused(self.lines)
        unused = [f"    (void){name};" for name in self._pointers.values() if name not in used]
        definition = "\n".join([prototype, "{", *unused, *lines, "}", ""])
        return KernelText(prototype, "\n".join([*self._functions, definition]), tuple(sorted(self.lanes)))

    def _parameters(self, names: Iterable[str]) -> list[str]:
        """Print parameters for variables of the scope."""
        return [self._declared(name, self._restrict) for name in names]

    def _declared(self, name: str, restrict: str = "") -> str:
        """Print the declaration of a parameter, or of a member."""
        kind = self.scope[name]
        if not kind.endswith("*"):
            return f"{kind} {name}"
        return f"{'' if name in self._written else 'const '}{kind}{restrict}{name}"

    def _statement(self, stmt: tirx.Stmt) -> None:
        printer: Callable[[tirx.Stmt], None] | None = getattr(self, f"_{type(stmt).__name__}", None)
        if printer is None:
            raise self.unknown(type(stmt).__name__)
        printer(stmt)

    def _block(self, head: str, *body: tirx.Stmt) -> None:
        """Print statements in braces behind a head."""
        self.emit(f"{head} {{")
        self.depth += 1
        for stmt in body:
            self._statement(stmt)
        self.depth -= 1
        self.emit("}")

    def _SeqStmt(self, stmt: tirx.SeqStmt) -> None:
        memory = dict(self._memory)
        for at, each in enumerate(stmt.seq):
            tiles, before = dict(self._tiles), len(self.lines)
            self._statement(each)
            if isinstance(each, tirx.For) and at + 1 < len(stmt.seq):
                written = dict.fromkeys(STORE.findall("\n".join(self.lines[before:])))
                for name in (name for name in written if name in tiles):
                    buffer, extent = tiles[name]
                    if not any(isinstance(later, tirx.For) and _writes(later, buffer) for later in stmt.seq[at + 1 :]):
                        self._end_tile(name, buffer, extent)
        self._memory |= memory

    def _end_tile(self, name: str, buffer: tirx.Var, extent: int) -> None:
        """Let the statements behind the last loop of a tile read a copy of it, apart from its registers."""
        kind = self.scope[name]
        done = self.declare_memory(buffer, kind, name=self._new(f"{name}_done", kind), is_array_of_vectors=True)
        self.emit(f"{kind.removesuffix(' *')} {done}[{extent}];")
        self.emit(f"pock_tile_done({done}, {name});")

    def _AttrStmt(self, stmt: tirx.AttrStmt) -> None:
        if stmt.attr_key not in DEVICE:
            raise self.unknown(f"attribute {stmt.attr_key}")
        self._statement(stmt.body)

    def _Return(self, stmt: tirx.Return) -> None:
        self.emit(f"return {self.index(stmt.value)};")

    def _Bind(self, stmt: tirx.Bind) -> None:
        self.bind(stmt.var, stmt.value)

    def _Evaluate(self, stmt: tirx.Evaluate) -> None:
        call = stmt.value
        if isinstance(call, tirx.IntImm):
            return
        is_intrinsic = isinstance(call, ir.Call) and call.op.name == "tirx.call_llvm_intrin"
        if not is_intrinsic or llvm.llvm_get_intrinsic_name(int(call.args[0])) != "llvm.prefetch":
            raise self.unknown(call)
        _, address, writes, *_ = call.args
        load = address.args[0]
        self.emit(f"pock_prefetch({self.address(self.memory(load.source), load.indices[0])}, {int(writes)});")

    def _AllocBuffer(self, stmt: tirx.AllocBuffer) -> None:
        buffer, (extent,) = stmt.buffer, stmt.buffer.shape
        dtype = self._known(DataType(str(buffer.dtype)))
        kind = vector(dtype) if dtype.lanes > 1 else stored_type(str(dtype))
        name = self.declare_memory(buffer, f"{kind} *", is_array_of_vectors=dtype.lanes > 1)
        if dtype.lanes > 1:
            self._tiles[name] = buffer, int(extent)
        # Compilers do not see that a first iteration initialises a number.
        self.emit(f"{kind} {name}[{int(extent)}]{'' if dtype.lanes > 1 else ' = {0}'};")

    def _DeclBuffer(self, stmt: tirx.DeclBuffer) -> None:
        dtype, data = DataType(str(stmt.buffer.dtype)), stmt.data
        if isinstance(data, ir.Call) and data.op.name == "tirx.handle_add_byte_offset":
            scratch, offset = data.args
            self._written.add(self._pointer(scratch))
            start = f"{self._pointer(scratch)} + {self._inside_sum(offset)}"
            kind = f"{stored_type(element(self._known(dtype)))} *"
            name = self.declare_memory(stmt.buffer, kind)
            self.emit(f"{kind}const {name} = ({kind})({start});")
        elif isinstance(data, ir.Call) and data.op.name == "tirx.buffer_data":
            self._alias(stmt.buffer, self.memory(data.args[0]).name)
        else:
            self._alias(stmt.buffer, self._pointer(data))

    def _inside_sum(self, offset: tirx.Expr) -> str:
        text = self.index(offset)
        return text if text.isalnum() or isinstance(offset, (tirx.Mul, tirx.Add)) else f"({text})"

    def _pointer(self, var: tirx.Var) -> str:
        return self._pointers[var]

    def _alias(self, buffer: tirx.Var, name: str) -> None:
        """Know a buffer under the name of its memory, whose elements are its own."""
        dtype = self._known(DataType(str(buffer.dtype)))
        kinds = {f"{stored_type(element(dtype))} *": False, f"{vector(dtype) if dtype.lanes > 1 else ''} *": True}
        if self.scope[name] not in kinds:
            raise self.unknown(f"{name} as {dtype}")
        self.declare_memory(buffer, name=name, is_array_of_vectors=kinds[self.scope[name]])

    def _BufferStore(self, stmt: tirx.BufferStore) -> None:
        memory, (place,), dtype = self.memory(stmt.buffer), stmt.indices, self._known(dtype_of(stmt.value))
        self._written.add(memory.name)
        value = self.value(stmt.value)
        if dtype.lanes > 1 and not memory.is_array_of_vectors:
            self.emit(f"{self.access(memory, dtype, place, 'store', 'scatter', value)};")
        elif dtype == memory.dtype:
            self.emit(f"{self.element(memory, place)} = {value};")
        else:
            raise self.unknown(f"{dtype} in {memory.name}")

    def _IfThenElse(self, stmt: tirx.IfThenElse) -> None:
        condition = self.index(stmt.condition)
        self._block(f"if ({condition})", stmt.then_case)
        if stmt.else_case is not None:
            self.lines.pop()
            self._block("} else", stmt.else_case)

    def _While(self, stmt: tirx.While) -> None:
        before = len(self.lines)
        condition = self.index(stmt.condition)
        if len(self.lines) > before:  # they would be computed once
            raise self.unknown("While with a long condition")
        self._block(f"while ({condition})", stmt.body)

    def _For(self, stmt: tirx.For) -> None:
        if stmt.step is not None and int(stmt.step) != 1:
            raise self.unknown("loop with a step")
        if stmt.kind == tirx.ForKind.PARALLEL:
            self._parallel(stmt)
        elif stmt.kind in (tirx.ForKind.SERIAL, tirx.ForKind.UNROLLED):
            first, end = self.index(stmt.min), self.index(stmt.min + stmt.extent)
            name = self.declare(stmt.loop_var, is_position=True)
            self._block(_loop(c_type(dtype_of(stmt.loop_var)), name, first, end), stmt.body)
        else:
            raise self.unknown(f"loop of kind {stmt.kind}")

    def _parallel(self, stmt: tirx.For) -> None:
        """Print a parallel loop as a function of a range, a task that calls it for a share, and the launch."""
        if not isinstance(stmt.extent, tirx.IntImm) or not isinstance(stmt.min, tirx.IntImm):
            raise self.unknown("parallel loop of variable extent")
        outside = list(self.scope)
        saved = self.lines, self.depth, self._written
        self.lines, self.depth, self._written = [], 1, set()
        name = self.declare(stmt.loop_var, is_position=True)
        self._block(_loop(c_type(dtype_of(stmt.loop_var)), name, "first", "end"), stmt.body)
        body, names = _without_unused(self.lines)
        used = [each for each in outside if each in names]
        self._functions += self._tasks(name, used, body, int(stmt.min), int(stmt.extent))
        written = self._written
        self.lines, self.depth, self._written = saved
        self._written |= written
        self.emit(f"if (pock_launch({name}_task, &(struct {name}_operands){{{', '.join(used)}}}, 0)) {{")
        self.emit("    return -1;")
        self.emit("}")

    def _tasks(self, name: str, used: Sequence[str], body: list[str], first: int, extent: int) -> list[str]:
        """Return the functions of a parallel loop, whose body uses variables from outside."""
        loop = _signature(f"static void {name}_loop", ["int32_t first", "int32_t end", *self._parameters(used)])
        members = [f"    {self._declared(each)};" for each in used]
        ends = [f"{first} + {end}" if first else end for end in ("first", "end")]
        arguments = [*ends, *(f"operands->{each}" for each in used)]
        return [
            "\n".join([loop, "{", *body, "}", ""]),
            "\n".join([f"struct {name}_operands {{", *members, "};", ""]),
            "\n".join(
                [
                    f"static int {name}_task(int task, void *group, void *data)",
                    "{",
                    f"    const struct {name}_operands *operands = data;",
                    "    int32_t first, end;",
                    f"    pock_share(task, group, {extent}, &first, &end);",
                    f"    {_signature(f'{name}_loop', arguments, 8)};",
                    "    return 0;",
                    "}",
                    "",
                ]
            ),
        ]


def _without_unused(lines: Sequence[str]) -> tuple[list[str], set[str]]:
    """Drop constants that no later line uses, as LLVM does. Returns the lines, and the words in them."""
    kept: list[str] = []
    words: set[str] = set()
    for line in reversed(lines):
        constant = CONSTANT.match(line)
        if constant is None or constant[1] in words:
            words.update(WORD.findall(line))
            kept.append(line)
    return kept[::-1], words


def _writes(loop: tirx.For, buffer: tirx.Var) -> bool:
    """Return whether a loop stores to a buffer."""
    found: list[tirx.BufferStore] = []
    tvm_ffi.structural_walk(loop, (tirx.BufferStore, found.append))
    return any(store.buffer.same_as(buffer) for store in found)


STORE = re.compile(r"(\w+)\[\w+\] = ")
CONSTANT, WORD = re.compile(r"\s*const \w+ (\w+) = "), re.compile(r"[A-Za-z_]\w*")


def _loop(kind: str, name: str, first: str, end: str) -> str:
    return f"for ({kind} {name} = {first}; {name} < {end}; ++{name})"


def _signature(name: str, parameters: Sequence[str], indent: int = 4) -> str:
    """Print a name and its parameters, or a call, in lines that are not too long."""
    lines = [f"{name}("]
    for at, parameter in enumerate(parameters):
        end = "," if at + 1 < len(parameters) else ")"
        if len(lines[-1]) + len(parameter) > WIDTH:
            lines.append(" " * indent)
        lines[-1] += f"{parameter}{end}" if lines[-1].endswith(("(", "    ")) else f" {parameter}{end}"
    return "\n".join(lines)
