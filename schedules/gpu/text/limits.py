"""Checks that a kernel's text is one that every device of its dialect takes.

They read the text alone, and share nothing with what writes it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import tvm_ffi

from ..lower import Launch
from ..traits import GpuTraits
from .names import RESERVED


@tvm_ffi.register_error("OverLimit")  # as it crosses TVM's functions, it stays what it is
class OverLimit(Exception):
    """Kernel that a device need not take; the message says why."""


@dataclass(frozen=True)
class _Dialect:
    """What a dialect has, and how its texts look."""

    threads: tuple[int, ...]
    """Most threads of a block along x, y and z."""
    blocks: tuple[int, ...]
    """Most blocks of a launch along x, y and z."""
    lacks: str
    """Types and literals that it does not know."""
    function: str
    """Beginning of a function that is launched: its name and its parameters. WGSL has a text a function."""
    shared: str
    """Array that the threads of a block share: its type and its extent."""
    barrier: str
    """Call that waits for all threads of a block."""


_C_TYPES = r"(?:bool|u?char|u?short|u?int|u?long|u?int(?:8|16|32|64)_t|float|half|double|nv_bfloat16)\d*"
DIALECTS = {
    "cuda": _Dialect(
        (1024, 1024, 64), (2**31 - 1, 65535, 65535), r"\blong double\b",
        r"__global__ void (?:__launch_bounds__\([\w, ]+\) )?(\w+)\(([^)]*)\) \{",
        rf"__shared__ (?:alignas\(\w+\) )?({_C_TYPES}) \w+\[(\d+)\]", r"__syncthreads\(",
    ),
    "metal": _Dialect(
        (1024, 1024, 1024), (2**32 - 1,) * 3, r"\bdouble\d?\b",
        r"kernel void (\w+)\((.*?)\n?\) \{", rf"threadgroup ({_C_TYPES}) \w+\[(\d+)\]", r"threadgroup_barrier\(",
    ),
    "opencl": _Dialect(
        (1024, 1024, 1024), (2**31 - 1,) * 3, r"\blong double\b", r"__kernel void (\w+)\(([^)]*)\) \{",
        rf"__local ({_C_TYPES}) \w+\[(\d+)\]", r"\bbarrier\(",
    ),
    "webgpu": _Dialect(
        (256, 256, 64), (65535,) * 3, r"(?:(?<=: )|(?<=<))(?:[iu](?:8|16|64)|f64)\b|\b(?:inf|nan)[fh]?\b", "",
        r"var<workgroup> \w+ : array<([\w<>]+), (\d+)>", r"\b(?:workgroupBarrier|workgroupUniformLoad)\(",
    ),
}  # fmt: skip
WGSL_FUNCTION = re.compile(r"(?m)^//-+\n// Function: (\w+)\n//-+\n")
BITS = {"bool": 8, "char": 8, "short": 16, "half": 16, "int": 32, "float": 32, "long": 64, "double": 64}


def check(text: str, launches: Sequence[Launch], traits: GpuTraits) -> None:
    """Check the text of a kernel and its launches against the limits of ``traits`` and its dialect.

    Raises
    ------
    OverLimit
        The first fault that was found.
    """
    for fault in faults(text, launches, traits):
        raise OverLimit(fault)


def faults(text: str, launches: Sequence[Launch], traits: GpuTraits) -> Iterator[str]:
    """Yield what a device of the dialect may refuse: too many arguments, threads, blocks or shared bytes, types and
    names that the dialect does not have, and barriers that not all threads reach."""
    dialect = DIALECTS[traits.dialect]
    functions = {function.name: function for function in _functions(text, traits.dialect)}
    for launch in launches:
        if launch.symbol not in functions:
            yield f"the text has no function '{launch.symbol}'"
            continue
        function = functions[launch.symbol]
        count = len(function.arguments)
        if count != len(launch.operands):
            yield f"{launch.symbol} has {count} arguments, and its launch gives {len(launch.operands)}"
        if count > traits.arguments:
            yield f"{launch.symbol} binds {count} buffers, of {traits.arguments} that a device has"
        threads = math.prod(launch.block)
        if threads > traits.threads:
            yield f"{launch.symbol} has {threads} threads a block, of {traits.threads}"
        for what, extents, most in (
            ("threads", launch.block, dialect.threads), ("blocks", launch.grid, dialect.blocks),
        ):  # fmt: skip
            if any(extent > limit for extent, limit in zip(extents, most, strict=True)):
                yield f"{launch.symbol} has {extents} {what} along x, y and z, of {most}"
        declared = re.search(r"@workgroup_size\((\d+), (\d+), (\d+)\)", function.text)
        if declared and tuple(map(int, declared.groups())) != tuple(launch.block):
            yield f"{launch.symbol} is for blocks of {declared[0]}, and its launch has {launch.block}"
    for function in functions.values():
        yield from function.faults(dialect, traits)


@dataclass
class _Function:
    """A device function's text."""

    name: str
    arguments: list[str]
    """Names of the buffers that it binds."""
    text: str
    """Its text, without comments."""
    dialect: str

    def __post_init__(self) -> None:
        self.uniform = set(UNIFORM)
        """Variables with one value in all threads of a block, and words that may stand beside them."""
        self.written = set(re.findall(r"(\w+)\[[^;{}]*?\] = ", self.text))
        """Arrays that it writes."""
        for name, value in re.findall(rf"(?m)^ *(?:let|(?:const )?{_C_TYPES}) (\w+)(?: : \w+)? = (.*);$", self.text):
            if self.is_same(value):
                self.uniform.add(name)

    def faults(self, dialect: _Dialect, traits: GpuTraits) -> Iterator[str]:
        shared = sum(_bytes(kind) * int(extent) for kind, extent in re.findall(dialect.shared, self.text))
        if shared > traits.shared_bytes:
            yield f"{self.name} shares {shared} bytes in a block, of {traits.shared_bytes}"
        for lacking in sorted(set(re.findall(dialect.lacks, self.text))):
            yield f"{self.name} needs '{lacking}', which {traits.dialect} does not have"
        for name in sorted(set(self.names())):
            # TVM calls parts of vectors __1, which C's compilers take.
            is_reserved = name == "_" or (name.startswith("__") and self.dialect == "webgpu")
            if is_reserved or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
                yield f"{self.name}: '{name}' is no name"
            elif name in RESERVED[self.dialect]:
                yield f"{self.name}: the name '{name}' is reserved"
        yield from self.split_barriers(dialect)

    def names(self) -> Iterator[str]:
        """Yield the names that it declares."""
        yield self.name
        yield from self.arguments
        if self.dialect == "webgpu":
            yield from re.findall(r"\b(?:var(?:<[^>]*>)?|let|fn) (\S+?)(?: :|\()", self.text)
        else:
            yield from re.findall(
                rf"(?m)^\s*(?:__shared__ )?(?:alignas\(\d+\) )?(?:\w+ )?{_C_TYPES} (\w+)(?: =|\[|;)", self.text
            )
            yield from re.findall(rf"for \({_C_TYPES} (\w+) =", self.text)

    def split_barriers(self, dialect: _Dialect) -> Iterator[str]:
        """Yield the barriers inside of branches and loops that threads of a block may take differently."""
        together = [True]  # whether all threads are in each statement that is open
        for line in map(str.strip, self.text.splitlines()):
            if re.search(dialect.barrier, line) and not all(together):
                yield f"{self.name} has a barrier that not all threads of a block reach"
            if line.startswith("}"):
                branch = together.pop() if len(together) > 1 else True
                if line.endswith("{"):
                    together.append(branch)
            elif found := re.fullmatch(r"(if|for|while) \((.*)\) \{(.*)", line):
                is_same = self.is_same(found[2])
                if "return" in found[3]:
                    together[0] &= is_same
                elif "break" in found[3]:
                    together[-1] &= is_same
                else:
                    together.append(is_same)
            elif line.endswith("{"):
                together.append(True)

    def is_same(self, expression: str) -> bool:
        """Return whether an expression, or the head of a loop, has one value in all threads of a block."""
        counter = re.match(rf"(?:var|{_C_TYPES}) (\w+)(?: : \w+)? = ", expression)
        if counter:
            self.uniform.add(counter[1])
        if self.dialect != "webgpu":  # memory that no thread writes; in WGSL, what is bound for writing never is
            while load := re.search(r"\b(\w+)\[([^\[\]]*)\]", expression):
                if load[1] in self.written or not self.is_same(load[2]):
                    return False
                expression = f"{expression[: load.start()]}0{expression[load.end() :]}"
        names = re.findall(r"(?<![\w.])[A-Za-z_]\w*", expression)
        is_same = "[" not in expression and self.uniform.issuperset(names)
        if counter and not is_same:
            self.uniform.discard(counter[1])
        return is_same


_UNIFORM = """
blockIdx gridDim blockDim get_group_id get_num_groups true false bool i32 u32 f32 int uint float long int64_t var let
convert_int convert_uint convert_long convert_float select min max bitcast workgroupUniformLoad ended
"""
UNIFORM = frozenset(_UNIFORM.split())
"""Words of expressions that are the same in all threads of a block, if what they are applied to is."""


def _functions(text: str, dialect: str) -> Iterator[_Function]:
    if dialect == "webgpu":
        _, *parts = WGSL_FUNCTION.split(text)
        for name, part in zip(parts[::2], parts[1::2], strict=True):
            plain = _without_comments(part)
            arguments = re.findall(r"@binding\(\d+\) var<[^>]*> (\S+) :", plain)
            yield _Function(name, arguments, plain, dialect)
        return
    plain = _without_comments(text)
    found = list(re.finditer(DIALECTS[dialect].function, plain, re.DOTALL))
    ends = [*(each.start() for each in found[1:]), len(plain)]
    for each, end in zip(found, ends, strict=True):
        arguments = [
            argument.split("*")[1].split("[[")[0].replace("__restrict__", "").replace("restrict", "").strip()
            for argument in each[2].split(",")
            if "*" in argument
        ]
        yield _Function(each[1], arguments, plain[each.start() : end], dialect)


def _without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)


def _bytes(kind: str) -> int:
    """Return the bytes of a type: ``float4``, ``vec4<f32>``, ``uint8_t``."""
    if vector := re.fullmatch(r"vec(\d)<(\w+)>", kind):
        return int(vector[1]) * _bytes(vector[2])
    if short := re.fullmatch(r"[fiu](\d+)", kind):
        return int(short[1]) // 8
    if sized := re.fullmatch(r"u?int(\d+)_t", kind):
        return int(sized[1]) // 8
    if bfloat16 := re.fullmatch(r"nv_bfloat16(\d*)", kind):
        return 2 * int(bfloat16[1] or 1)
    plain = re.fullmatch(r"u?([a-z_]+?)(\d*)", kind)
    bits = BITS.get(plain[1], 32) if plain else 32
    return bits // 8 * int(plain[2] or 1) if plain else bits // 8
