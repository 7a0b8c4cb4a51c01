"""Runs kernels for CUDA and Metal on the host, by their text: for tests without a GPU, and of what OpenCL does not
have."""

from __future__ import annotations

import atexit
import functools
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tvm import tirx

from schedules.gpu import GpuTarget
from schedules.gpu.text.code import described

HERE = Path(__file__).parent
COMPILER = ("g++", "-std=c++20", "-w", f"-I{HERE}")
CHECKED = ("-fno-strict-aliasing", "-fsanitize=alignment", "-fno-sanitize-recover")
SHARED = re.compile(r"__shared__ (alignas\(\d+\) )?([\w ]+?) (\w+)\[(\d+)\];")
ASSEMBLY = re.compile(r'asm volatile\("([^"]*)"(.*)\);')
ALIGNMENT = 256
"""Alignment of operands, in bytes."""
AROUND = 1024
"""Bytes before and after each operand, all ones: as floats, NaN."""


def run(func: tirx.PrimFunc, target: GpuTarget, arrays: Sequence[np.ndarray], folder: Path) -> None:
    """Run a scheduled function in place on arrays, its parameters. Its threads take turns in ascending order, then in
    descending order, which must make no difference.

    A test is skipped where the host has no compiler for them.
    """
    record = described(target.lower(func.with_attr("global_symbol", "kernel")), target.traits)
    sizes = [array.nbytes for array in arrays] + record["sizes"][len(arrays) :]
    starts, end = [], AROUND
    for size in sizes:
        starts.append(end)
        end += -(-size // ALIGNMENT) * ALIGNMENT + AROUND
    source, program = folder / "kernel.cpp", folder / "kernel"
    dialect = target.traits.dialect
    text = translated(record["text"]) if dialect == "cuda" else from_metal(record["text"])
    source.write_text(
        f'#include <cstdio>\n#include "{dialect}_on_host.hpp"\n{text}\n{main(record["launches"], starts, end)}'
    )
    compiled(*CHECKED, str(source), str(runtime()), "-o", str(program))
    before = np.full(end, 0xFF, "uint8")
    for start, array in zip(starts, arrays, strict=False):
        before[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view("uint8")
    results = []
    for order in ("ascending", "descending"):
        before.tofile(folder / "memory")
        command = [str(program), str(folder / "memory"), order]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr[:4000]
        results.append(np.fromfile(folder / "memory", "uint8"))
    assert (results[0] == results[1]).all(), "the order of threads makes a difference"
    after = results[0]
    for start, array in zip(starts, arrays, strict=False):
        array[...] = after[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    for start, size in zip(starts, sizes, strict=True):
        after[start : start + size] = 0xFF
    assert (after == 0xFF).all(), "written outside"


@functools.cache
def runtime() -> Path:
    """Compile what runs kernels. A test is skipped where there is no ``g++``, or no ``ucontext.h``."""
    if shutil.which("g++") is None or sys.platform != "linux":
        pytest.skip("needs g++ on Linux")
    found = Path(tempfile.mkdtemp(), "cuda_on_host.o")
    atexit.register(shutil.rmtree, found.parent)
    compiled("-O1", "-c", str(HERE / "cuda_on_host.cpp"), "-o", str(found))
    return found


def compiled(*arguments: str) -> None:
    """Call the compiler."""
    done = subprocess.run([*COMPILER, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]


def translated(text: str) -> str:
    """Translate a text of TVM's generator to C++: shared memory and assembly. Its own declarations are left out."""
    text = text[
        min(text.find(mark) for mark in ("__forceinline__ __device__ void pock_", 'extern "C"') if mark in text) :
    ]
    text = SHARED.sub(r"\1static \2 \3[\4]; static int \3_block = -1; begin_shared(\3_block, \3, sizeof \3);", text)
    return ASSEMBLY.sub(lambda found: _call(found[1], found[2]), text)


def from_metal(text: str) -> str:
    """Translate a text for Metal to C++: attributes, memory that threads share, and places of threads."""
    parts = text.split("// Function: ")[1:]
    text = "".join(part[part.index("kernel void") :] for part in parts)
    text = re.sub(r",\s*uint blockIdx \[\[.*?\]\],\s*uint threadIdx \[\[.*?\]\]\s*\) \{", PLACES, text)
    text = re.sub(r" \[\[ buffer\(\d+\) \]\]", "", text).replace("kernel void", "void")
    text = THREADGROUP.sub(r"static \1 \2[\3]; static int \2_block = -1; begin_shared(\2_block, \2, sizeof \2);", text)
    return re.sub(r"\b(device|threadgroup|thread) ", "", text)


PLACES = ") {\n  const uint blockIdx = ::blockIdx.x, threadIdx = ::threadIdx.x;\n"
THREADGROUP = re.compile(r"threadgroup (\w+) (\w+)\[(\d+)\];")


def _call(template: str, constraints: str) -> str:
    """Return the call of a function for an instruction of inline assembly, its dots as underscores."""
    operands = _operands(constraints)
    name, _, arguments = template.rstrip(";").partition(" ")
    values = re.sub(r"%(\d+)", lambda found: operands[int(found[1])], re.sub(r"[{}\[\]]", "", arguments))
    return f"{name.replace('.', '_')}({values});"


def _operands(constraints: str) -> list[str]:
    """Return the expressions of ``"=r"(a), "r"(b[0])``, which may hold brackets."""
    found = []
    for mark in re.finditer(r'"[=+]?\w"\(', constraints):
        depth, at = 1, mark.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(constraints[at], 0)
            at += 1
        found.append(constraints[mark.end() : at - 1])
    return found


def main(launches: Sequence[Sequence], starts: Sequence[int], end: int) -> str:
    """Write the program that launches kernels on the memory in a file."""
    calls = "".join(
        f"  launch({_place(grid)}, {_place(block)}, descending, [] {{\n"
        f"    {symbol}({', '.join(f'argument(memory + {starts[number] + offset})' for number, offset in operands)});\n"
        "  });\n"
        for symbol, grid, block, operands in launches
    )
    return f"""
struct argument {{
  char* at;
  explicit argument(char* at) : at(at) {{}}
  template <class T> operator T*() const {{ return reinterpret_cast<T*>(at); }}
}};
alignas({ALIGNMENT}) static char memory[{end}];

int main(int, char** words) {{
  bool descending = !std::strcmp(words[2], "descending");
  FILE* file = std::fopen(words[1], "r+b");
  if (std::fread(memory, 1, sizeof memory, file) != sizeof memory) fail("the file is short");
{calls}  std::rewind(file);
  std::fwrite(memory, 1, sizeof memory, file);
  return std::fclose(file);
}}
"""


def _place(extents: Sequence[int]) -> str:
    return f"{{{', '.join(map(str, extents))}}}"
