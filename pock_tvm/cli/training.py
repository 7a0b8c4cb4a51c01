"""The command that trains, and what it shares with the one that trains on a device."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import OptionError, PockWarning
from .common import (
    ALLOW_DROP,
    CHECKPOINT_EVERY,
    DATA,
    DEVICE,
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
    THREADS,
    TOLERATE,
    VAL,
    LrSchedule,
    app,
    preprocessing_for,
    restored,
)
from .interruption import Interruption

if TYPE_CHECKING:
    from ..device.trainer import Trainer
    from ..training.data import Augmentation
    from ..training.fine_tuning import Checkpoints
    from ..training.recipe import Recipe


@dataclass(frozen=True)
class Job:
    """A run of :func:`~pock_tvm.training.fine_tuning.fine_tune` with what the command line shows of it."""

    recipe: Recipe
    data: Path
    val: Path | None
    checkpoints: Checkpoints | None
    augmentation: Augmentation
    start: Path | None
    mean: str | None
    std: str | None
    seed: int
    tolerate: int
    allow_drop: bool

    def run(self, trainer: Trainer, *, resume: bool, after_step: Callable[[], None] = lambda: None) -> None:
        """Train; ``typer.Exit`` with the code for a signal that stopped it. ``after_step`` is called after each
        step."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        from ..training.data import open_samples
        from ..training.fine_tuning import fine_tune

        checkpoint = None if self.checkpoints is None else self.checkpoints.path
        origin = checkpoint if resume else self.start
        if origin is not None:
            restored(trainer, Path(origin), allow_drop=self.allow_drop)
        manifest, preprocessing = trainer.program.manifest, preprocessing_for(trainer, self.data, self.mean, self.std)
        known = trainer.notes.get("classes")
        training = open_samples(manifest, self.data, preprocessing, self.augmentation, classes=known)
        val = self.val
        validation = None if val is None else open_samples(manifest, val, preprocessing, classes=training.classes)
        if self.checkpoints is None:
            warnings.warn("nothing of this run will be kept: that takes --checkpoint", PockWarning, stacklevel=2)
        console = Console()
        columns = (TextColumn("epoch {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with (
            Interruption() as interruption,
            Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar,
        ):
            row = bar.add_task("1", total=None)

            def progress(epoch: int, done: int, steps: int) -> None:
                bar.update(row, description=str(epoch), completed=done, total=steps)
                after_step()

            outcome = fine_tune(
                trainer,
                self.recipe,
                training,
                self.seed,
                validation=validation,
                checkpoints=self.checkpoints,
                resume=resume,
                tolerate=self.tolerate,
                say=lambda line: console.print(line, highlight=False, soft_wrap=True),
                progress=progress,
                stop=lambda: interruption.signal is not None,
            )
        best = outcome.best
        if best is not None and best.epoch != self.recipe.epochs and self.checkpoints is not None:
            where = f"that of epoch {best.epoch}" if best.epoch else "the one before the first step"
            console.print(f"the best state is {where}: {best}, in {self.checkpoints.best}", soft_wrap=True)
        if not outcome.finished:
            place = f"stopped after {outcome.steps} of {outcome.total} steps"
            again = how_to_go_on(checkpoint, self.start) if checkpoint else "nothing was kept: that takes --checkpoint"
            typer.echo(f"pock: {place}; {again}", err=True)
            raise typer.Exit(interruption.exit_code)


def refuse_both(resume: bool, start: Path | None) -> None:
    """Raise OptionError if a run is to go on, and to begin with a checkpoint."""
    if resume and start is not None:
        raise OptionError("--resume goes on with a run and --start begins one: leave one of them out")


def how_to_go_on(checkpoint: object, start: Path | None) -> str:
    """Say what to do with the checkpoint of a run that did not end."""
    return f"'{checkpoint}' has the state: go on with the same command and --resume{' for --start' if start else ''}"


@app.command()
def train(
    program: PROGRAM,
    data: DATA,
    val: VAL = None,
    epochs: EPOCHS = 1,
    lr: LR = 0.01,
    lr_schedule: LR_SCHEDULE = LrSchedule.COSINE,
    checkpoint: Annotated[Path | None, STATE] = None,
    checkpoint_every: Annotated[int | None, CHECKPOINT_EVERY] = None,
    keep: KEEP = 1,
    resume: RESUME = False,
    start: START = None,
    overwrite: OVERWRITE = False,
    allow_drop: ALLOW_DROP = False,
    tolerate: TOLERATE = 0,
    mean: MEAN = None,
    std: STD = None,
    flip: Annotated[bool, typer.Option(help="Flip training images at random")] = False,
    crop: Annotated[bool, typer.Option(help="Crop training images at random")] = False,
    seed: SEED = 0,
    threads: THREADS = None,
    device: DEVICE = None,
    require_signature: SIGNATURE = None,
) -> None:
    """Train a program on your data.

    Exit codes: 0 finished, 2 a fault of yours, 3 values that are not finite, 130 and 143 stopped by Ctrl-C or SIGTERM.
    """
    from ..device.program import Program
    from ..device.trainer import Trainer
    from ..training.data import Augmentation
    from ..training.fine_tuning import Checkpoints
    from ..training.recipe import Recipe

    for option, needs in (("--resume", resume), ("--checkpoint-every", checkpoint_every), ("--tolerate", tolerate)):
        if needs and checkpoint is None:
            raise OptionError(f"{option} needs --checkpoint, the file that keeps the state")
    refuse_both(resume, start)
    trainer = Trainer(Program.load(program, signature=require_signature), threads=threads, device=device)
    checkpoints = None if checkpoint is None else Checkpoints(checkpoint, checkpoint_every, keep, overwrite)
    recipe = Recipe(epochs, lr, lr_schedule)
    Job(recipe, data, val, checkpoints, Augmentation(flip, crop), start, mean, std, seed, tolerate, allow_drop).run(
        trainer, resume=resume
    )
