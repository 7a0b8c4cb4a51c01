"""Measures a training step of a bundle (`pock deploy`) against the trainer's, of the same program on the same threads.

    python bench/deploy.py [--model mcunet --batch 1] [--threads 2] [--cc zig] [--source] [--rounds 20] [--json a.json]

Both live in one process and take turns of a few steps: whatever else the machine does meets both alike. One thread is
measured by its time on a core, which other work touches least. Losses must be equal, bit by bit; within 1e-4 with
`--source`, where the kernels are C. The ratio is that of the median steps; the
range is that of the single rounds' ratios. MCUNet needs ../shared/data.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from step_models import NETWORKS, exported

import pock_tvm as pock

RATE = float(np.float32(0.001))
BURST = 0.4
"""Seconds of steps in a turn."""
WARM_UP = 3


def net_of(folder: Path) -> Any:
    """The network of a bundle, through its own wrapper."""
    spec = importlib.util.spec_from_file_location("net", folder / "net.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net = module.Net()
    net.set_rate(RATE)
    return net


def burst(step: Callable[[], float], clock: Callable[[], float]) -> list[float]:
    """Take steps for a while, and return their seconds."""
    times: list[float] = []
    while sum(times) < BURST or len(times) < WARM_UP:
        start = clock()
        step()
        times.append(clock() - start)
    return times


def measure(name: str, batch: int, threads: int, cc: str, rounds: int, *, source: bool) -> dict[str, Any]:
    """Compile, deploy and measure one network."""
    network = NETWORKS[name]
    program = pock.compile(
        exported(name, batch),
        batch=batch if name == "mcunet" else None,
        loss=network.loss,
        optimizer=pock.SGD(momentum=0.9),
        batch_norm="frozen",
        check=False,
    )
    named, target = network.data(batch)
    inputs = list(named.values())
    with tempfile.TemporaryDirectory() as folder:
        bundle = pock.deploy(program, Path(folder) / name, cc=cc, threads=threads, source=source)
        net, trainer = net_of(bundle), pock.Trainer(program, threads=threads)
        given = [np.asarray(x, spec["dtype"]) for x, spec in zip(inputs, program.manifest["inputs"], strict=True)]
        found = program.tensor("target")
        arrays = [*given, np.asarray(target, found[1])] if found else given

        def ours() -> float:
            return net.train_step(*arrays)

        def trainers() -> float:
            return trainer.step(inputs, target if found else None, lr=RATE)

        losses = [(ours(), trainers()) for _ in range(WARM_UP)]
        if not np.allclose(*zip(*losses, strict=True), rtol=1e-4 if source else 0, atol=0):
            raise SystemExit(f"{name}: the losses differ: {losses}")
        clock = time.thread_time if threads == 1 else time.perf_counter
        turns = [(burst(trainers, clock), burst(ours, clock)) for _ in range(rounds)]
        net.close()
    medians = [(statistics.median(one), statistics.median(other)) for one, other in turns]
    trainer_time, bundle_time = (statistics.median(each) for each in zip(*medians, strict=True))
    ratios = sorted(other / one for one, other in medians)
    return {
        "model": network.title,
        "batch": batch,
        "threads": threads,
        "cc": cc,
        "source": source,
        "trainer": trainer_time,
        "bundle": bundle_time,
        "ratio": bundle_time / trainer_time,
        "ratios": ratios,
    }


def main(
    model: Annotated[list[str] | None, typer.Option(help="Names in step_models.py")] = None,
    batch: Annotated[int, typer.Option(min=1)] = 1,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    cc: Annotated[str, typer.Option(help="zig, or a C compiler")] = "zig",
    source: Annotated[bool, typer.Option("--source", help="Kernels as C")] = False,
    rounds: Annotated[int, typer.Option(min=1)] = 20,
    json_output: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Measure, and print a table."""
    records = [measure(name, batch, threads, cc, rounds, source=source) for name in model or ["mcunet", "distilbert"]]
    table = Table("network", "batch", "threads", "trainer ms", "bundle ms", "bundle / trainer", "range of rounds")
    for each in records:
        times = [f"{1e3 * each[name]:.2f}" for name in ("trainer", "bundle")]
        bounds = f"{each['ratios'][0]:.3f} … {each['ratios'][-1]:.3f}"
        table.add_row(each["model"], str(batch), str(threads), *times, f"{each['ratio']:.3f}", bounds)
    Console(width=120).print(table)
    if json_output is not None:
        json_output.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    typer.run(main)
