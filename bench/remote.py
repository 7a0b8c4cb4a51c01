"""Trains MCUNet on a device over TVM's RPC, and here: losses and states must be equal within 1e-4.

    python bench/remote.py HOST:PORT [--target pi4] [--steps 20] [--threads 1] [--json a.json]

Everything is trained, with momentum, at batch 1: once by steps of a `RemoteTrainer`, whose losses are compared, and
once by `pock run`, whose state is compared with that of `pock train` here. Differences of weights and momenta are
absolute. Times of an emulated device are no device's. It needs ../shared/data.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from step_models import NETWORKS, SEED, exported

import pock_tvm as pock
from pock_tvm.deploying.connection import Address, Connection
from pock_tvm.deploying.remote import RemoteTrainer

NETWORK = NETWORKS["mcunet"]
RATE = 0.0003
"""At three times as much the losses of random samples diverge, and differences in rounding with them."""
TOLERANCE = 1e-4
Data = dict[str, np.ndarray]


def compiled(target: str, path: Path) -> pock.Program:
    """Compile the full step for a target, and save it."""
    options = {"loss": NETWORK.loss, "optimizer": pock.SGD(momentum=0.9), "target": target, "check": False}
    program = pock.compile(exported("mcunet", 1), batch=1, **options)
    program.save(path)
    return program


def losses_of(trainer: pock.Trainer, data: Data) -> tuple[list[float], float]:
    """Losses of steps on one sample each, and the median of their seconds."""
    losses, seconds = [], []
    for x, y in zip(data["x"], data["y"], strict=True):
        start = time.perf_counter()
        losses.append(trainer.step(x[None], y[None], lr=RATE))
        seconds.append(time.perf_counter() - start)
    return losses, statistics.median(seconds)


def state_of(program: pock.Program, checkpoint: Path) -> Data:
    """Weights and momenta of a checkpoint."""
    trainer = pock.Trainer(program)
    trainer.restore(checkpoint)
    momenta = trainer.optimizer_state("momentum_buffer")
    return trainer.weights() | {f"momentum of {name}": array for name, array in momenta.items()}


def pock_command(*words: object) -> None:
    """Run the command ``pock``."""
    subprocess.run([Path(sys.executable).with_name("pock"), *map(str, words)], check=True)


def measure(device: str, target: str, steps: int, threads: int) -> dict[str, Any]:
    """Train there and here, and compare."""
    rng = np.random.default_rng(SEED)
    x = rng.standard_normal((steps, 3, NETWORK.size, NETWORK.size)).astype("float32")
    data = {"x": x, "y": rng.integers(0, NETWORK.classes, steps)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        here, there = (compiled(each, folder / f"{each}.pock") for each in ("host", target))
        np.savez(folder / "data.npz", **data)
        with contextlib.closing(RemoteTrainer(there, Connection(Address.parse(device)), threads=threads)) as remote:
            losses, seconds = losses_of(remote, data)
        own_losses, _ = losses_of(pock.Trainer(here), data)
        recipe = ["--data", folder / "data.npz", "--lr", RATE, "--checkpoint-every", 5, "--threads", threads]
        pock_command("run", folder / f"{target}.pock", *recipe, "--checkpoint", folder / "there.ckpt", "--rpc", device)
        pock_command("train", folder / "host.pock", *recipe, "--checkpoint", folder / "here.ckpt")
        states = [state_of(here, folder / f"{each}.ckpt") for each in ("there", "here")]
    differences = {name: float(np.abs(array - states[1][name]).max()) for name, array in states[0].items()}
    farthest = max(differences, key=lambda each: differences[each])
    return {
        "target": target,
        "steps": steps,
        "threads": threads,
        "loss": float(np.abs(np.subtract(losses, own_losses)).max()),
        "state": differences[farthest],
        "farthest": farthest,
        "seconds": seconds,
    }


def main(
    device: Annotated[str, typer.Argument(help="HOST:PORT of TVM's RPC server")],
    target: str = "pi4",
    steps: Annotated[int, typer.Option(min=1)] = 20,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    json_output: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Compare, and print a line."""
    record = measure(device, target, steps, threads)
    print(
        f"{target}, {steps} steps, {threads} threads: losses differ by {record['loss']:.1e}, the state by "
        f"{record['state']:.1e} ({record['farthest']}); a step took {record['seconds']:.2f} s"
    )
    if json_output is not None:
        json_output.write_text(json.dumps(record, indent=1))
    if max(record["loss"], record["state"]) > TOLERANCE:
        raise SystemExit(f"more than {TOLERANCE:g}")


if __name__ == "__main__":
    typer.run(main)
