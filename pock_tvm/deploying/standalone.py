"""Compiles a bundle's C for systems whose C library is missing here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from .templates import libc_texts, write_texts
from .toolchain import OPTIMISE, SOURCES, WARNINGS, compiled_kernels, run_compiler, zig_command


def objects_of(
    folder: Path, kernels: Sequence[Path], target: Sequence[str], work: Path, more: Iterable[Path] = ()
) -> list[Path]:
    """Return the objects of a bundle for a target of zig's: its own code, ``more`` of it, and the kernels.

    Those that have to be compiled are made in the folder ``work``.

    Raises
    ------
    PockError
        The compiler is missing, or fails.
    """
    write_texts(work, libc_texts())
    includes = [f"-I{each}" for each in (work, folder, folder / "runtime", folder / "kernels")]
    compiler = [*zig_command(), *target, "-fPIC", "-fvisibility=hidden", *includes]
    sources = [*(folder / name for name in SOURCES), *more]
    objects = [work / f"{source.stem}.o" for source in sources]
    for source, made in zip(sources, objects, strict=True):
        run_compiler([*compiler, *WARNINGS, OPTIMISE, "-c", str(source), "-o", str(made)])
    return [*objects, *compiled_kernels(compiler, kernels, work)]
