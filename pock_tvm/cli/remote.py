"""The commands that find devices, and train on one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import DeviceError
from .common import (
    ALLOW_DROP,
    CHECKPOINT_EVERY,
    DATA,
    EPOCHS,
    KEEP,
    LR,
    LR_SCHEDULE,
    MEAN,
    OVERWRITE,
    PROGRAM,
    RESUME,
    SEED,
    SIGNATURE,
    START,
    STATE,
    STD,
    TOLERATE,
    VAL,
    LrSchedule,
    app,
)
from .connecting import ANY_TRACKER, KEY, RPC, TIMEOUT, TIMEOUT_S, TRACKER, endpoint
from .training import Job, how_to_go_on, refuse_both

if TYPE_CHECKING:
    from ..deploying.remote import RemoteTrainer


@app.command()
def devices(tracker: Annotated[str, TRACKER], timeout: TIMEOUT = TIMEOUT_S) -> None:
    """List the devices that a tracker of TVM's RPC knows: key, address, and how many of the key are free."""
    from ..deploying.connection import Address, devices

    found, free = devices(Address.parse(tracker), timeout=timeout)
    if not found:
        typer.echo(
            f"the tracker at {tracker} knows no device: start one with\n"
            f"python -m tvm.exec.rpc_server --tracker {tracker} --key NAME"
        )
    for device in found:
        same = sum(each.key == device.key for each in found)
        typer.echo(f"{device.key:<16} {device.address:<24} {free.get(device.key, 0)} of {same} free")


@app.command()
def run(
    program: PROGRAM,
    data: DATA,
    checkpoint: Annotated[Path, STATE],
    rpc: RPC = None,
    tracker: ANY_TRACKER = None,
    key: KEY = "",
    timeout: TIMEOUT = TIMEOUT_S,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to look for a device that has disappeared")] = 60.0,
    val: VAL = None,
    epochs: EPOCHS = 1,
    lr: LR = 0.01,
    lr_schedule: LR_SCHEDULE = LrSchedule.COSINE,
    checkpoint_every: Annotated[int, CHECKPOINT_EVERY] = 1,
    keep: KEEP = 1,
    resume: RESUME = False,
    start: START = None,
    overwrite: OVERWRITE = False,
    allow_drop: ALLOW_DROP = False,
    tolerate: TOLERATE = 0,
    mean: MEAN = None,
    std: STD = None,
    seed: SEED = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Cores of the device; by default its own choice")] = None,
    require_signature: SIGNATURE = None,
) -> None:
    """Train a program on a device, over TVM's RPC. The state is fetched and kept here, in --checkpoint.

    The device needs TVM alone: python -m tvm.exec.rpc_server --host ADDRESS --port 9090. Whoever reaches that port can
    run any code there, unencrypted and without a password: open it in a network of your own only, or to 127.0.0.1
    behind ssh -L 9090:localhost:9090.

    A device that disappears is looked for; the run goes on from the last checkpoint as if nothing had happened. With
    --checkpoint-every 1, the default, no step is lost; more is faster, and repeats at most so many.

    Exit codes: as those of pock train.
    """
    from ..deploying.remote import RemoteTrainer
    from ..device.program import Program
    from ..training.data import Augmentation
    from ..training.fine_tuning import Checkpoints
    from ..training.recipe import Recipe

    device = endpoint(rpc, tracker, key, timeout)
    refuse_both(resume, start)
    loaded = Program.load(program, signature=require_signature)
    checkpoints, recipe = Checkpoints(checkpoint, checkpoint_every, keep, overwrite), Recipe(epochs, lr, lr_schedule)

    def trainer() -> RemoteTrainer:
        return RemoteTrainer(loaded, device.connect(), threads=threads)

    job = Job(recipe, data, val, checkpoints, Augmentation(), start, mean, std, seed, tolerate, allow_drop)
    _run(job, trainer, resume, wait)


def _run(job: Job, open_trainer: Callable[[], RemoteTrainer], resume: bool, wait: float) -> None:
    """Train on a device. If it disappears, look for it, and go on from the last checkpoint."""
    from ..deploying.connection import connected

    device, furthest = open_trainer(), -1
    while True:
        taken: list[None] = []
        try:
            with contextlib.closing(device):
                job.run(device, resume=resume, after_step=lambda: taken.append(None))  # noqa: B023 - called here alone
            return
        except DeviceError as lost:
            if not taken or device.steps <= furthest:  # twice at one step is no accident
                raise DeviceError(f"{lost}; {_kept(job) if resume else 'no step was done'}") from lost
            typer.echo(f"pock: {lost}; looking for it for {wait:g} s", err=True)
        resume, furthest = True, device.steps
        try:
            device = connected(open_trainer, wait)
        except DeviceError as gone:
            raise DeviceError(f"{gone}; {_kept(job)}") from gone


def _kept(job: Job) -> str:
    return how_to_go_on(job.checkpoints.path if job.checkpoints else None, job.start)
