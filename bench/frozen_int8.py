"""Frozen layers in eight bits, against float32: the published schemes at batch 8.

    python bench/frozen_int8.py [NETWORK …] [--compiled FOLDER] [--output FILE.json]

A row: milliseconds of the frozen prefix (its kernels, one by one) and of whole steps, in float32 and with int8; bytes
of the prefix's weights, and those that its kernels read and write; arena; the largest relative error of the outputs.
Sides alternate within one run; the medians are shown. Kernels behind the prefix are the same in both programs, so the
float prefix is what remains of its program's kernels, in time and in bytes.
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
    prefix_ms, prefix_bytes = (prefix(rows, column) for column in ("ms", "bytes"))
    float_step, int8_step = map(statistics.median, steps)
    return {
        "network": name,
        "prefix_ms": prefix_ms,
        "prefix_gain": prefix_ms[0] / prefix_ms[1],
        "prefix_bytes": prefix_bytes,
        "prefix_weights": weights_of_prefix(*both),
        "step_ms": [float_step, int8_step],
        "step_gain": float_step / int8_step,
        "arena": [program.memory()["arena"] for program in both],
        "file": [(folder / f"{name}.{kind}.pock").stat().st_size for kind in ("float32", "int8")],
        "error": both[1].manifest["quantized"]["check"]["error"],
        "layers": len(both[1].manifest["quantized"]["layers"]),
    }


def prefix(rows: list[list[dict[str, Any]]], column: str) -> list[float]:
    """Sum a column over the kernels of the prefix, in float and in eight bits."""
    whole = [sum(row[column] for row in each) for each in rows]
    own = sum(row[column] for row in rows[1] if "quantize" in row["kernel"])
    return [whole[0] - (whole[1] - own), own]


def weights_of_prefix(floats: pock.Program, int8: pock.Program) -> list[int]:
    """Bytes of the weights and biases that the prefix's layers read: in float, and in eight bits with the vectors that
    rescale sums, which are constants."""
    saved = floats.memory()["parameters"] - int8.memory()["parameters"]
    constants = [sum(array.nbytes for array in program.constants.values()) for program in (floats, int8)]
    return [saved, constants[1] - constants[0]]


def main() -> None:
    """Measure the networks, print a table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["mobilenetv2", "mcunet"])
    parser.add_argument("--compiled", type=Path, default=Path("/tmp"), help="folder for the programs")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    rows = [measure(name, given.compiled) for name in given.networks]
    columns = ("network", "layers", "prefix ms", "", "step ms", "", "weights KiB", "moved MiB", "arena MiB", "error")
    table = Table(*columns)
    for row in rows:
        pairs = {name: " / ".join(f"{value:.2f}" for value in row[f"{name}_ms"]) for name in ("prefix", "step")}
        arena = " / ".join(f"{size / 2**20:.1f}" for size in row["arena"])
        gains = {name: f"{row[f'{name}_gain']:.2f}x" for name in ("prefix", "step")}
        weights = " / ".join(f"{size / 2**10:.0f}" for size in row["prefix_weights"])
        moved = " / ".join(f"{size / 2**20:.1f}" for size in row["prefix_bytes"])
        table.add_row(
            row["network"], str(row["layers"]), pairs["prefix"], gains["prefix"], pairs["step"], gains["step"],
            weights, moved, arena,
            f"{row['error']:.1%}",
        )  # fmt: skip
    console.print(table)
    if given.output is not None:
        given.output.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
