"""Frozen layers in eight bits, against float32: the published schemes at batch 8.

    python bench/frozen_int8.py [NETWORK …] [--compiled FOLDER] [--output FILE.json]

A row: milliseconds of the frozen prefix (its kernels, one by one) and of whole steps, in float32 and with int8; arena
and file; the largest relative error of the outputs. Sides alternate within one run; the medians are shown. Kernels
behind the prefix are the same in both programs, so the float prefix is what remains of its program's kernels.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from step_models import NETWORKS, exported

import pock_tvm as pock
from pock_tvm.device.profile import profile

BATCH, ROUNDS = 8, 15
console = Console()


def programs(name: str, folder: Path) -> tuple[pock.Program, pock.Program]:
    """Compile a network with its published scheme, in float and with its frozen prefix in eight bits."""
    paths = [folder / f"{name}.{kind}.pock" for kind in ("float32", "int8")]
    if not all(path.exists() for path in paths):
        model, (x, y) = exported(name, BATCH), NETWORKS[name].data(BATCH)
        options: dict[str, Any] = {"batch": BATCH, "batch_norm": "frozen", "loss": NETWORKS[name].loss}
        options["scheme"] = pock.Scheme.pockengine(model)
        pock.compile(model, check=False, **options).save(paths[0])
        inputs = next(iter(x.values())) if len(x) == 1 else x
        pock.compile(model, frozen="int8", calibrate_with=[(inputs, y)], **options).save(paths[1])
    return pock.Program.load(paths[0]), pock.Program.load(paths[1])


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Measure a network's two programs, side by side."""
    both = programs(name, folder)
    inputs, target = NETWORKS[name].data(BATCH)
    trainers = [pock.Trainer(program) for program in both]
    x = tuple(inputs.values())
    steps: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for trainer, seconds in zip(trainers, steps, strict=True):
            start = time.perf_counter()
            trainer.step(x, target, lr=0.0)
            seconds.append(1e3 * (time.perf_counter() - start))
    rows = [profile(trainer, x, target) for trainer in trainers]
    whole = [sum(row["ms"] for row in each) for each in rows]
    prefix = sum(row["ms"] for row in rows[1] if "quantize" in row["kernel"])
    float_step, int8_step = map(statistics.median, steps)
    float_prefix = whole[0] - (whole[1] - prefix)
    return {
        "network": name,
        "prefix_ms": [float_prefix, prefix],
        "prefix_gain": float_prefix / prefix,
        "step_ms": [float_step, int8_step],
        "step_gain": float_step / int8_step,
        "arena": [program.memory()["arena"] for program in both],
        "file": [(folder / f"{name}.{kind}.pock").stat().st_size for kind in ("float32", "int8")],
        "error": both[1].manifest["quantized"]["check"]["error"],
        "layers": len(both[1].manifest["quantized"]["layers"]),
    }


def main() -> None:
    """Measure the networks, print a table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["mobilenetv2", "mcunet"])
    parser.add_argument("--compiled", type=Path, default=Path("/tmp"), help="folder for the programs")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    rows = [measure(name, given.compiled) for name in given.networks]
    table = Table("network", "layers", "prefix ms", "", "step ms", "", "arena MiB", "error")
    for row in rows:
        pairs = {name: " / ".join(f"{value:.2f}" for value in row[f"{name}_ms"]) for name in ("prefix", "step")}
        arena = " / ".join(f"{size / 2**20:.1f}" for size in row["arena"])
        gains = {name: f"{row[f'{name}_gain']:.2f}x" for name in ("prefix", "step")}
        table.add_row(
            row["network"], str(row["layers"]), pairs["prefix"], gains["prefix"], pairs["step"], gains["step"], arena,
            f"{row['error']:.1%}",
        )  # fmt: skip
    console.print(table)
    if given.output is not None:
        given.output.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
