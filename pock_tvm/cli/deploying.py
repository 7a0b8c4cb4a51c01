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
        typer.Option(help="What a microcontroller or DSP trains on: an .npz file, as pock train takes it"),
    ] = None,
    require_signature: SIGNATURE = None,
) -> None:
    """Write a program as C code that needs neither Python nor TVM."""
    from rich.console import Console

    from ..deploying.bundle import bundled
    from ..deploying.maker import Options
    from ..deploying.samples import read_samples
    from ..device.program import Program

    loaded = Program.load(program, signature=require_signature)
    options = Options(
        source=source, embed_weights=embed_weights, cc=cc, build=build, threads=threads, flash=flash, ram=ram,
        samples=None if samples is None else read_samples(loaded, samples),
    )  # fmt: skip
    console = Console(stderr=True)
    with console.status(f"deploying {program.name}"):
        folder, remarks = bundled(loaded, output, options)
    for remark in remarks:
        console.print(f"{folder}: {remark}", highlight=False)
