"""Toolchains: from a program's triple to the compiler that builds its bundle, and the arguments that it takes."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..device.machine import CORES, machine_triple
from ..errors import PockError

ZIG = "zig"
WARNINGS = ("-std=c11", "-Wall", "-Wextra", "-Werror")
OPTIMISE = "-O3"
PIC = "-fPIC"
KERNEL_FLAGS = ("-fno-math-errno", "-fvisibility=hidden")
"""Of kernels that are sources."""
ZIG_SYSTEMS = {"linux": "linux-gnu", "windows": "windows-gnu", "darwin": "macos"}
"""Systems whose C library zig brings, by the names that it gives them."""
SOURCES = ("pock.c", "runtime/pock_runtime.c", "runtime/pock_state.c")
"""Files of a bundle that its library is built of, beside the kernels."""
THREADS = "runtime/pock_threads.c"
"""One more, for several threads."""


@dataclass(frozen=True)
class Toolchain:
    """C compiler for one target, and what it makes there."""

    command: tuple[str, ...]
    for_library: tuple[str, ...] = ("-shared", PIC)
    """Arguments for the shared library."""
    library: str = "libpock.so"
    """Name of the shared library."""
    program: str = "main"
    """Name of the program that ``main.c`` makes."""
    processor: tuple[str, ...] = ()
    """Arguments that name the processor: kernels as source are compiled for it."""

    def build(self, folder: Path, kernels: Sequence[Path], threads: int, *, embedded: bool) -> None:
        """Build a bundle's shared library and its program. ``kernels``: objects or sources.

        Raises
        ------
        PockError
            The compiler fails.
        """
        with tempfile.TemporaryDirectory(dir=folder) as name:
            flags = [*self.processor, *(each for each in self.for_library if each == PIC)]
            objects = compiled_kernels([*self.command, *flags], kernels, Path(name))
            self._build(folder, objects, threads, embedded=embedded)

    def _build(self, folder: Path, kernels: Sequence[Path], threads: int, *, embedded: bool) -> None:
        used = [folder / name for name in (*SOURCES, *([THREADS] if threads > 1 else []))]
        sources = [*map(str, used), *map(str, kernels)]
        flags = [*WARNINGS, OPTIMISE, "-fvisibility=hidden", f"-DPOCK_THREADS={threads}", f"-I{folder / 'runtime'}"]
        flags += [f"-I{folder / 'kernels'}", *(["-pthread"] if threads > 1 else [])]
        if embedded:
            flags.append("-DPOCK_EMBEDDED_WEIGHTS")
            sources.append(str(folder / "weights.c"))
        self._run([*self.for_library, *flags, *sources, "-lm", "-o", str(folder / self.library)])
        main = [str(folder / "main.c"), *sources, "-lm", "-o", str(folder / self.program)]
        self._run([*flags, *main])

    def _run(self, arguments: Sequence[str]) -> None:
        run_compiler([*self.command, *arguments])


def compiled_kernels(compiler: Sequence[str], kernels: Sequence[Path], folder: Path) -> list[Path]:
    """Compile the kernels that are sources into a folder, as many at a time as there are cores; return all objects.

    Raises
    ------
    PockError
        The compiler fails.
    """

    def compiled(kernel: Path) -> Path:
        if kernel.suffix != ".c":
            return kernel
        made = folder / f"{kernel.stem}.o"
        run_compiler([*compiler, *WARNINGS, OPTIMISE, *KERNEL_FLAGS, "-c", str(kernel), "-o", str(made)])
        return made

    with ThreadPoolExecutor(CORES) as pool:
        return list(pool.map(compiled, kernels))


def run_compiler(command: Sequence[str], folder: Path | None = None) -> None:
    """Run a compiler, in a folder.

    Raises
    ------
    PockError
        It fails.
    """
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()
        fault = next((line for line in said if "error" in line), said[0])
        raise PockError(f"'{command[0]}' fails to build the bundle: {fault}")


def toolchain_for(triple: str, cc: str) -> Toolchain:
    """Return the toolchain for a triple: ``"zig"``, or the path or name of a C compiler.

    Raises
    ------
    PockError
        The compiler is not installed, builds for another machine, or lacks the target's C library.
    """
    if cc == ZIG:
        return _zig(triple)
    found = shutil.which(cc)
    if found is None:
        raise PockError(f"there is no C compiler '{cc}': install it, or take zig (cc='zig')")
    said = subprocess.run([found, "-dumpmachine"], capture_output=True, text=True)
    if said.returncode or _kind(said.stdout.strip()) != _kind(triple):
        raise PockError(
            f"this program was compiled for {triple}, and '{cc}' builds for {said.stdout.strip() or 'something else'}: "
            "take zig (cc='zig'), or a compiler for that machine"
        )
    return _named((found,), triple)


def zig_command(tool: str = "cc") -> tuple[str, ...]:
    """Return one of zig's tools as a command: its C compiler, ``"ld.lld"``, ``"ar"``.

    Raises
    ------
    PockError
        It is not installed.
    """
    if importlib.util.find_spec("ziglang") is None:
        raise PockError(
            "a bundle is built by ziglang, which is not installed: pip install 'pock-tvm[deploy]', or name a C "
            "compiler (cc='gcc')"
        )
    return (sys.executable, "-m", "ziglang", tool)


def _zig(triple: str) -> Toolchain:
    command = zig_command()
    if machine_triple(triple) == machine_triple():
        return _named(command, triple)
    architecture, system = _kind(triple)
    if system not in ZIG_SYSTEMS:
        raise PockError(
            f"zig has no C library for {triple}: print the bundle without building (build=False), and build it there "
            "or name a compiler for that machine (cc=…)"
        )
    abi = "eabihf" if (architecture, system) == ("arm", "linux") else ""
    return _named((*command, "-target", f"{architecture}-{ZIG_SYSTEMS[system]}{abi}"), triple)


def _named(command: tuple[str, ...], triple: str) -> Toolchain:
    """Return the toolchain of a command, with the names that files have on the target's system."""
    _, system = _kind(triple)
    if system == "windows":
        return Toolchain(command, ("-shared",), library="pock.dll", program="main.exe")
    if system == "darwin":  # where a program that links the library finds it: not in the folder that it was built in
        return Toolchain(command, ("-shared", PIC, "-Wl,-install_name,@rpath/libpock.dylib"), "libpock.dylib")
    native = ("-march=native",) if machine_triple(triple) == machine_triple() else ()
    return Toolchain(command, processor=native)


def _kind(triple: str) -> tuple[str, str]:
    """Return the architecture and the system of a triple: ``("arm", "linux")``. Android is a system of its own."""
    machine, _, system = machine_triple(triple).rpartition("-")
    if machine.startswith(("armv", "thumbv")):
        machine = "arm"
    return machine, "android" if "android" in triple else "windows" if "mingw" in triple else system
