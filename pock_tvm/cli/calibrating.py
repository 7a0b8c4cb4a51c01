"""The command that measures this machine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from .common import app


@app.command()
def calibrate(
    json_output: Annotated[Path | None, typer.Option("--json", help="Write the measurements here, too")] = None,
) -> None:
    """Measure this machine's cores, caches and threads, in some ten seconds, for --target calibrated.

    Programs for --target host do not change. Let nothing else run meanwhile.
    """
    from rich.console import Console

    from ..calibrating.measure import calibrate as measure
    from ..compiler.calibration import save_calibration
    from ..compiler.targets import HOST, resolve_target
    from ..device.files import check_folder, replacing
    from ..device.machine import THREADS
    from ..reports.calibration_table import calibration_table

    if json_output is not None:
        check_folder(json_output)
    host = resolve_target(HOST)
    with Console(stderr=True).status("measuring this machine"):
        found = measure(host)
    path = save_calibration(host, found)
    if json_output is not None:
        with replacing(json_output) as file:
            file.write(json.dumps(dataclasses.asdict(found) | {"traits": found.traits}, indent=1).encode())
    console = Console()
    console.print(calibration_table(found, THREADS))
    console.print(f"kept in {path}", highlight=False, soft_wrap=True)
