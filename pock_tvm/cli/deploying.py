"""Commands that put programs on devices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import PROGRAM, SIGNATURE, app


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
    require_signature: SIGNATURE = None,
) -> None:
    """Write a program as C code that needs neither Python nor TVM."""
    from rich.console import Console

    from ..deploying.bundle import deploy as write_bundle
    from ..device.program import Program

    loaded = Program.load(program, signature=require_signature)
    console = Console(stderr=True)
    with console.status(f"deploying {program.name}"):
        folder = write_bundle(
            loaded, output, source=source, embed_weights=embed_weights, cc=cc, build=build, threads=threads
        )
    console.print(f"{folder}: see its README.md", highlight=False)
