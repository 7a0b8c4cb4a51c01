"""Runs one kernel as a program under qemu-hexagon."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tvm import tirx

from pock_tvm.compiler.targets import kernel_target, resolve_target
from pock_tvm.deploying.hexagon import CLANG, COMMON, LINK, LINKER, clang_flags
from pock_tvm.deploying.templates import BOARDS, HEXAGON, filled, libc_texts, text_of, write_texts
from schedules.decisions import DEFAULTS, Decisions
from schedules.target import Target

EMULATOR = str(Path(os.environ.get("POCK_HEXAGON", "/opt/pock-hexagon")) / "qemu-hexagon")
"""Debian 13's emulator, of every version. Debian 12's (QEMU 7.2) knows v66, and reads a wrong number where a packet loads
what it stores, if the packet before had a predicated instruction that did not run."""
MAIN = """
#include "board.h"
static int read_all(const char *name, void *data, size_t bytes) {{
  board_file file;
  return board_open(&file, name, 0) != BOARD_OPEN || board_read(&file, 0, data, bytes) || board_close(&file);
}}
static int write_all(const char *name, const void *data, size_t bytes) {{
  board_file file;
  return board_open(&file, name, 1) != BOARD_OPEN || board_write(&file, data, bytes) || board_close(&file);
}}
{memory}
int32_t kernel({types});
int main(void) {{
  {reads}
  if (kernel({names})) return 3;
  {writes}
  return 0;
}}
"""
SECONDS = 60
TRACED = re.compile(r"\[\w+/(\w+)/")
INSTRUCTION = re.compile(r"\s*(\w+):\t(?:\w\w ?)+\t\w+\s+(.*)")


def emulator() -> str:
    """The emulator; the test is skipped where it, or what builds for it, is missing."""
    for needed in (EMULATOR, CLANG, LINKER):
        if shutil.which(needed) is None:
            pytest.skip(f"{needed} is missing: scripts/install-emulators installs it")
    return EMULATOR


def hexagon(version: str) -> Target:
    return kernel_target(resolve_target(f"hexagon-{version}"))


def run(func: tirx.PrimFunc, arrays: list[np.ndarray], folder: Path, version: str) -> np.ndarray:
    """Run an unscheduled kernel on arrays under the emulator, and return its last parameter."""
    program = built(func, folder, version)
    for number, array in enumerate(arrays):
        array.tofile(folder / f"{number}.bin")
    subprocess.run([emulator(), program], cwd=folder, check=True, timeout=SECONDS)
    found = func.params[-1].ty
    return np.fromfile(folder / f"{len(arrays)}.bin", str(found.dtype)).reshape([int(n) for n in found.shape])


def built(func: tirx.PrimFunc, folder: Path, version: str, decisions: Decisions = DEFAULTS) -> Path:
    """A program that reads the operands of a kernel from files, calls it, and writes its result."""
    target = hexagon(version)
    func = target.schedule(func.with_attr("global_symbol", "kernel"), decisions)
    (folder / "kernel.o").write_bytes(target.code(func))
    sizes = [
        int(np.prod([int(n) for n in param.ty.shape])) * np.dtype(str(param.ty.dtype)).itemsize for param in func.params
    ]
    scratch = target.scratch_bytes(func)
    named = [*(f"operand_{number}" for number in range(len(sizes))), *(["scratch"] if scratch else [])]
    memory = [
        f"static _Alignas(128) unsigned char {name}[{size}];"
        for name, size in zip(named, [*sizes, *([scratch] if scratch else [])], strict=True)
    ]
    *given, last = range(len(sizes))
    reads = [f'if (read_all("{number}.bin", operand_{number}, {sizes[number]})) return 1;' for number in given]
    writes = f'if (write_all("{last}.bin", operand_{last}, {sizes[last]})) return 2;'
    main = MAIN.format(
        memory="\n".join(memory), types=", ".join(["void *"] * len(named)), names=", ".join(named),
        reads="\n  ".join(reads), writes=writes,
    )  # fmt: skip
    return linked(folder, {"main.c": main}, version)


def linked(folder: Path, texts: dict[str, str], version: str) -> Path:
    """A program of texts in C, of the objects that lie in a folder, and of what each bundle has for the start."""
    texts = texts | {
        "board/board.h": text_of("board.h", BOARDS),
        "board/start.c": text_of("start.c", HEXAGON),
        "board/builtins.c": text_of("builtins.c", HEXAGON),
        **{f"board/libc/{name}": text for name, text in libc_texts().items()},
        "runtime/pock_runtime.c": text_of("pock_runtime.c"),
        "runtime/pock_runtime.h": text_of("pock_runtime.h"),
        "runtime/pock_math.c": text_of("pock_math.c"),
        "runtime/pock_math.h": text_of("pock_math.h"),
        "kernels/pock_kernels.h": filled("pock_kernels.h", kernels=""),
    }
    write_texts(folder, texts)
    for name in texts:
        if name.endswith(".c"):
            made = Path(name).with_suffix(".o").name
            subprocess.run([CLANG, *clang_flags(version), *COMMON, "-c", name, "-o", made], cwd=folder, check=True)
    objects = sorted(path.name for path in folder.glob("*.o"))
    subprocess.run([LINKER, *LINK, *objects, "-o", "program"], cwd=folder, check=True)
    return folder / "program"


def packets_run(program: Path, version: str) -> tuple[int, int]:
    """The packets, and the instructions of vectors, that the kernel of a program runs, by QEMU's trace."""
    symbols = subprocess.run(["llvm-nm-19", "-S", program], capture_output=True, text=True, check=True).stdout
    places = re.findall(r"(\w+) (\w+) [tT] kernel\w*", symbols)
    start, end = min(int(at, 16) for at, _ in places), max(int(at, 16) + int(size, 16) for at, size in places)
    traced = ["-one-insn-per-tb", "-d", "exec,nochain", "-dfilter", f"{start:#x}..{end:#x}", "-D", "trace"]
    subprocess.run([EMULATOR, *traced, program], cwd=program.parent, check=True)
    with (program.parent / "trace").open() as lines:
        counts = Counter(int(found[1], 16) for found in map(TRACED.search, lines) if found)
    command = ["llvm-objdump-19", "-d", f"--mcpu=hexagon{version}", f"--mattr=+hvx{version},+hvx-length128b", program]
    packet = vectors = 0
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        if found := INSTRUCTION.match(line):
            packet = int(found[1], 16) if "{" in found[2] else packet
            vectors += counts[packet] * bool(re.search(r"\bv\d+\b", found[2]))
            packet = 0 if "}" in found[2] else packet
    return sum(counts.values()), vectors
