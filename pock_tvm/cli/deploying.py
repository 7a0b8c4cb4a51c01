"""Commands that put programs on devices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import FLASH, PROGRAM, RAM, SIGNATURE, app


@app.command()
def deploy(
    program: PROGRAM,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the bundle")],
    source: Annotated[
        bool, typer.Option("--source", help="Write the kernels as portable C, in place of objects")
    ] = False,
    embed_weights: Annotated[
        bool, typer.Option("--embed-weights", help="Put the weights into the code, for devices without files")
    ] = False,
    cc: Annotated[str, typer.Option(help="What builds it: zig, or a C compiler")] = "zig",
    build: Annotated[bool, typer.Option("--build/--no-build", help="Build the library and the program here")] = True,
    threads: Annotated[int, typer.Option(help="Threads of each instance in what is built here", min=1)] = 1,
    flash: FLASH = None,
    ram: RAM = None,
    samples: Annotated[
        Path | None,
        typer.Option(help="What a microcontroller trains on: an .npz file, as pock train takes it"),
    ] = None,
    require_signature: SIGNATURE = None,
) -> None:
    """Write a program as C code that needs neither Python nor TVM."""
    from rich.console import Console

    from ..deploying.boards import read_samples
    from ..deploying.bundle import deploy as write_bundle
    from ..deploying.needs import fitting_needs
    from ..deploying.phones import phone_of, remark
    from ..device.program import Program

    loaded = Program.load(program, signature=require_signature)
    console = Console(stderr=True)
    with console.status(f"deploying {program.name}"):
        folder = write_bundle(
            loaded, output, source=source, embed_weights=embed_weights, cc=cc, build=build, threads=threads,
            flash=flash, ram=ram, samples=None if samples is None else read_samples(loaded, samples),
        )  # fmt: skip
    needs = fitting_needs(loaded, flash, ram)
    if needs is not None:
        console.print(f"needs {needs}", highlight=False)
    phone = phone_of(loaded)
    said = "see its README.md" if phone is None else remark(phone, built=build)
    console.print(f"{folder}: {said}", highlight=False)
