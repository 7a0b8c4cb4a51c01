"""The command that trains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import OptionError
from .common import (
    ALLOW_DROP,
    DATA,
    MEAN,
    PROGRAM,
    SIGNATURE,
    STD,
    THREADS,
    LrSchedule,
    app,
    preprocessing_for,
    restored,
)
from .interruption import Interruption


@app.command()
def train(
    program: PROGRAM,
    data: DATA,
    val: Annotated[Path | None, typer.Option(help="Data to evaluate on before the first and after each epoch")] = None,
    epochs: Annotated[int, typer.Option(min=0)] = 1,
    lr: Annotated[float, typer.Option(help="Learning rate")] = 0.01,
    lr_schedule: Annotated[LrSchedule, typer.Option()] = LrSchedule.COSINE,
    checkpoint: Annotated[
        Path | None, typer.Option(help="The file to keep the state in; the best by --val is kept beside it")
    ] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between two checkpoints, beside those after each epoch")
    ] = None,
    keep: Annotated[int, typer.Option(min=1, help="How many of the last checkpoints to keep")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run that wrote --checkpoint was")] = False,
    start: Annotated[Path | None, typer.Option(help="A checkpoint whose state a new run starts from")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a checkpoint that this run does not start from")
    ] = False,
    allow_drop: ALLOW_DROP = False,
    tolerate: Annotated[
        int, typer.Option(min=0, help="Steps that may meet values that are not finite; each is left out")
    ] = 0,
    mean: MEAN = None,
    std: STD = None,
    flip: Annotated[bool, typer.Option(help="Flip training images at random")] = False,
    crop: Annotated[bool, typer.Option(help="Crop training images at random")] = False,
    seed: Annotated[int, typer.Option()] = 0,
    threads: THREADS = None,
    require_signature: SIGNATURE = None,
) -> None:
    """Train a program on your data.

    Exit codes: 0 finished, 2 a fault of yours, 3 values that are not finite, 130 and 143 stopped by Ctrl-C or SIGTERM.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from ..device.program import Program
    from ..device.trainer import Trainer
    from ..training.data import Augmentation, open_samples
    from ..training.fine_tuning import Checkpoints, fine_tune
    from ..training.recipe import Recipe

    for option, needs in (("--resume", resume), ("--checkpoint-every", checkpoint_every), ("--tolerate", tolerate)):
        if needs and checkpoint is None:
            raise OptionError(f"{option} needs --checkpoint, the file that keeps the state")
    if resume and start is not None:
        raise OptionError("--resume goes on with a run and --start begins one: leave one of them out")
    trainer = Trainer(Program.load(program, signature=require_signature), threads=threads)
    origin = checkpoint if resume else start
    if origin is not None:
        restored(trainer, origin, allow_drop=allow_drop)
    manifest, preprocessing = trainer.program.manifest, preprocessing_for(trainer, data, mean, std)
    known = trainer.notes.get("classes")
    training = open_samples(manifest, data, preprocessing, Augmentation(flip, crop), classes=known)
    validation = None if val is None else open_samples(manifest, val, preprocessing, classes=training.classes)
    console = Console()
    columns = (TextColumn("epoch {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Interruption() as interruption,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar,
    ):
        row = bar.add_task("1", total=None)
        outcome = fine_tune(
            trainer,
            Recipe(epochs, lr, lr_schedule),
            training,
            seed,
            validation=validation,
            checkpoints=None if checkpoint is None else Checkpoints(checkpoint, checkpoint_every, keep, overwrite),
            resume=resume,
            tolerate=tolerate,
            say=lambda line: console.print(line, highlight=False, soft_wrap=True),
            progress=lambda epoch, done, steps: bar.update(row, description=str(epoch), completed=done, total=steps),
            stop=lambda: interruption.signal is not None,
        )
    best = outcome.best
    if best is not None and best.epoch != epochs and checkpoint is not None:
        where = f"that of epoch {best.epoch}" if best.epoch else "the one before the first step"
        console.print(f"the best state is {where}: {best}, in {Checkpoints(checkpoint).best}", soft_wrap=True)
    if not outcome.finished:
        place = f"stopped after {outcome.steps} of {outcome.total} steps"
        again = (
            f"'{checkpoint}' has the state: go on with the same command and --resume{' for --start' if start else ''}"
        )
        typer.echo(f"pock: {place}; {again if checkpoint else 'nothing was kept: that takes --checkpoint'}", err=True)
        raise typer.Exit(interruption.exit_code)
