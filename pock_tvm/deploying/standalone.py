"""Compiles a bundle's C for systems whose C library is missing here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from .templates import BOARDS, text_of
from .toolchain import OPTIMISE, SOURCES, WARNINGS, run_compiler, zig_command


def objects_of(
    folder: Path, kernels: Iterable[Path], target: Sequence[str], work: Path, more: Iterable[Path] = ()
) -> list[Path]:
    """Return the objects of a bundle for a target of zig's: its own code, ``more`` of it, and the kernels.

    Those that have to be compiled are made in the folder ``work``.

    Raises
    ------
    PockError
        The compiler is missing, or fails.
    """
    (work / "string.h").write_text(text_of("string.h", BOARDS))
    includes = [f"-I{each}" for each in (work, folder, folder / "runtime", folder / "kernels")]
    flags = [*target, *WARNINGS, OPTIMISE, "-fPIC", "-fvisibility=hidden", *includes]
    sources = [*(folder / name for name in SOURCES[:2]), *more]
    objects = [work / f"{source.stem}.o" for source in sources]
    for source, made in zip(sources, objects, strict=True):
        run_compiler([*zig_command(), *flags, "-c", str(source), "-o", str(made)])
    return [*objects, *kernels]
