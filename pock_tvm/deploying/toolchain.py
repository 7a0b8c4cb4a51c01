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

from ..device.runtime import CORES, machine_triple
from ..errors import PockError

ZIG = "zig"
WARNINGS = ("-std=c11", "-Wall", "-Wextra", "-Werror")
OPTIMISE = "-O3"
KERNEL_FLAGS = ("-fno-math-errno", "-fPIC", "-fvisibility=hidden")
SOURCES = ("pock.c", "runtime/pock_runtime.c", "runtime/pock_threads.c")
"""Files of a bundle that its library is built of, beside the kernels."""


@dataclass(frozen=True)
class Toolchain:
    """C compiler for one target."""

    command: tuple[str, ...]
    library: str
    """Name of the shared library."""
    program: str
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
            self._build(folder, self._objects(kernels, Path(name)), threads, embedded=embedded)

    def _build(self, folder: Path, kernels: Sequence[Path], threads: int, *, embedded: bool) -> None:
        used = [folder / name for name in SOURCES[: 3 if threads > 1 else 2]]
        sources = [*map(str, used), *map(str, kernels)]
        flags = [*WARNINGS, OPTIMISE, "-fvisibility=hidden", f"-DPOCK_THREADS={threads}", f"-I{folder / 'runtime'}"]
        flags += [f"-I{folder / 'kernels'}", *(["-pthread"] if threads > 1 else [])]
        if embedded:
            flags.append("-DPOCK_EMBEDDED_WEIGHTS")
            sources.append(str(folder / "weights.c"))
        self._run([*flags, "-fPIC", "-shared", *sources, "-lm", "-o", str(folder / self.library)])
        self._run([*flags, str(folder / "main.c"), *sources, "-lm", "-o", str(folder / self.program)])

    def _objects(self, kernels: Sequence[Path], folder: Path) -> list[Path]:
        """Compile the kernels that are sources into a folder, as many at a time as there are cores."""
        flags = [*WARNINGS, OPTIMISE, *self.processor, *KERNEL_FLAGS]

        def compiled(kernel: Path) -> Path:
            if kernel.suffix != ".c":
                return kernel
            made = folder / f"{kernel.stem}.o"
            self._run([*flags, "-c", str(kernel), "-o", str(made)])
            return made

        with ThreadPoolExecutor(CORES) as pool:
            return list(pool.map(compiled, kernels))

    def _run(self, arguments: Sequence[str]) -> None:
        done = subprocess.run([*self.command, *arguments], capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()
            fault = next((line for line in said if "error" in line), said[0])
            raise PockError(f"'{' '.join(self.command)}' fails to build the bundle: {fault}")


def toolchain_for(triple: str, cc: str) -> Toolchain:
    """Return the toolchain for a triple: ``"zig"``, or the path or name of a C compiler.

    Raises
    ------
    PockError
        The compiler is not installed, or builds for another machine.
    """
    if machine_triple(triple) != machine_triple():
        raise PockError(
            f"this program was compiled for {triple}, and bundles are built here for {machine_triple()} alone: print "
            "it without building (build=False), and build it there"
        )
    if cc == ZIG:
        if importlib.util.find_spec("ziglang") is None:
            raise PockError(
                "a bundle is built by ziglang, which is not installed: pip install 'pock-tvm[deploy]', or name a C "
                "compiler (cc='gcc')"
            )
        command: tuple[str, ...] = (sys.executable, "-m", "ziglang", "cc")
    elif (found := shutil.which(cc)) is not None:
        command = (found,)
    else:
        raise PockError(f"there is no C compiler '{cc}': install it, or take zig (cc='zig')")
    return Toolchain(command, "libpock.so", "main", ("-march=native",))
