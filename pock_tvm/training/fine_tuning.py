"""Fine-tuning: runs a recipe on a trainer, keeps its state on disk, and takes up a run that was stopped."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..device.arguments import FLAG, PATH, options, whole
from ..device.checkpoint import older_of
from ..device.files import check_folder, followed
from ..device.trainer import Trainer
from ..errors import CheckpointError, NonFiniteError, OptionError
from .data import Batch, DataSet, check_classes, evaluation_batches
from .progress import Evaluation, Progress, check_notes
from .recipe import Recipe, TrainingSteps

EXPLODED = 10.0
"""Growth of the loss that is worth a word, as a factor over the first steps of a run."""
WINDOW = 10
"""Steps whose mean loss is looked at: a single batch may be odd."""


@options(
    path=PATH,
    every=whole("a number of steps, at least 1", 1).or_none(),
    keep=whole("a number of checkpoints to keep, at least 1", 1),
    overwrite=FLAG,
)
@dataclass(frozen=True)
class Checkpoints:
    """Where and how often a run writes its state: before the first step, and after each epoch."""

    path: str | os.PathLike[str]
    every: int | None = None
    """Steps between two checkpoints within an epoch; none there by default."""
    keep: int = 1
    """How many of the last checkpoints stay."""
    overwrite: bool = False
    """Whether files may be replaced that the run did not start from."""

    @property
    def best(self) -> Path:
        """The file of the best state by validation: ``net.best.ckpt`` beside ``net.ckpt``."""
        path = followed(self.path)
        return path.with_name(f"{path.stem}.best{path.suffix}")


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    finished: bool
    """False where it was stopped."""
    steps: int
    """Steps of the run that are done."""
    total: int
    epoch: int
    """Epochs that have begun."""
    best: Evaluation | None
    """The best result on the validation data, where there is some."""


def fine_tune(
    trainer: Trainer,
    recipe: Recipe,
    data: DataSet,
    seed: int = 0,
    *,
    validation: DataSet | None = None,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    tolerate: int = 0,
    say: Callable[[str], None] = lambda _line: None,
    progress: Callable[[int, int, int], None] = lambda _epoch, _done, _steps: None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train by a recipe.

    Parameters
    ----------
    trainer : Trainer
        Goes on from its present state.
    seed : int
        Determines the order of samples and their augmentation.
    validation : DataSet, optional
        What is evaluated before the first step and after each epoch. The best state is kept in ``checkpoints.best``.
    checkpoints : Checkpoints, optional
        Where the state is written. Nothing is overwritten that the trainer was not restored from.
    resume : bool
        Go on in the middle of the run whose checkpoint the trainer was restored from. It ends as if it had never
        stopped, to the last bit.
    tolerate : int
        Steps that may meet a value that is not finite. Each is left out, from the last state on disk on.
    say : callable
        Takes each line for the user.
    progress : callable
        Takes, after each step, the epoch from 1, its steps so far and its steps.
    stop : callable
        Asked before each step and each batch of validation. If it answers True, the state is written and the run ends.

    Raises
    ------
    NonFiniteError
        More than ``tolerate`` steps met a value that is not finite. The last good state is on disk and in the trainer.
    CheckpointError
        A file would be overwritten, or there is no run to resume, or it is another one.
    DataError
        Classes of the data, of the validation data and of the checkpoint differ.
    WriteError
        The disk is full or read-only. What was on it is whole.
    """
    if tolerate and checkpoints is None:
        raise OptionError("tolerate needs a checkpoint to go back to: give one, or leave it out")
    run = _Run(trainer, recipe, data, seed, validation, checkpoints, tolerate, say, progress, stop)
    return run.resumed() if resume else run.begun()


class _Stopped(Exception):  # noqa: N818 - no error
    """The run was asked to stop while it evaluated."""


class _Run:
    """One run of :func:`fine_tune`."""

    def __init__(
        self,
        trainer: Trainer,
        recipe: Recipe,
        data: DataSet,
        seed: int,
        validation: DataSet | None,
        checkpoints: Checkpoints | None,
        tolerate: int,
        say: Callable[[str], None],
        progress: Callable[[int, int, int], None],
        stop: Callable[[], bool],
    ) -> None:
        self.trainer, self.recipe, self.data, self.seed, self.validation = trainer, recipe, data, seed, validation
        self.checkpoints, self.tolerate, self.say, self.show, self.stop = checkpoints, tolerate, say, progress, stop
        self.batch = int(trainer.program.manifest["inputs"][0]["shape"][0])
        self.state = Progress({**asdict(recipe), "seed": seed, **data.identity()})
        self.steps = TrainingSteps(recipe, data, self.batch, seed)
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.last = [0, 0]
        """The epoch and the samples of the last step that was taken: they tell it from all others of the run."""
        check_notes(trainer.notes)
        check_classes("the checkpoint", trainer.notes.get("classes"), "the training data", data.classes)
        if validation is not None:
            check_classes("the training data", data.classes, "the validation data", validation.classes)
        kept = {"classes": data.classes, "preprocessing": data.preprocessing}
        trainer.notes = trainer.notes | {name: value for name, value in kept.items() if value is not None}

    def begun(self) -> Outcome:
        """Begin a run, unless a file stands in its way."""
        if self.checkpoints is not None:
            self._refuse_to_overwrite(self.checkpoints, resumes=False)
            self._save(keep=1 if self.checkpoints.overwrite else self.checkpoints.keep)
            self.checkpoints.best.unlink(missing_ok=True)
        return self._go()

    def resumed(self) -> Outcome:
        """Go on with the run that the trainer was restored from."""
        notes, restored = self.trainer.notes.get("progress"), self.trainer.restored
        if restored is None or not isinstance(notes, Mapping) or notes.get("steps") != self.trainer.steps:
            path = f"'{restored.path}'" if restored is not None else "the trainer's state"
            raise CheckpointError(f"{path} is not from within a run: it can start one, and there is none to resume")
        self._load(restored.path, notes)
        if not self._is_due():
            self.say(f"finished already, after {self.steps.total} steps")
        elif self.checkpoints is not None:
            self._refuse_to_overwrite(self.checkpoints, resumes=True)
        return self._go()

    def _go(self) -> Outcome:
        while self._is_due():
            try:
                if self.stop():
                    self._save()
                    return self._outcome(finished=False)
                if self._evaluation_is_due():
                    self.say(f"before: {self._evaluate(0)}")
                elif self._epoch_is_due():
                    self._end_epoch()
                else:
                    self._step()
            except _Stopped:
                continue
            except NonFiniteError as error:
                self._go_back(error)
        return self._outcome(finished=True)

    def _is_due(self) -> bool:
        """Whether there is anything left to do."""
        return self.steps.done < self.steps.total or self._epoch_is_due() or self._evaluation_is_due()

    def _evaluation_is_due(self) -> bool:
        """Whether the state before the first step was not evaluated yet."""
        return self.validation is not None and self.steps.done == 0 and self.state.best is None

    def _epoch_is_due(self) -> bool:
        """Whether an epoch has ended that was not reported yet."""
        return self.steps.done > 0 and self.steps.epoch_is_over and self.state.reported <= self.steps.epoch

    def _step(self) -> None:
        (x, y), rate = next(self.steps)
        place = [self.steps.epoch, self.steps.samples]
        if place in self.state.skipped:
            return
        self.last = place
        loss = self.trainer.step(x, y, lr=rate)
        if not math.isfinite(loss):  # of a program that was compiled without guards
            raise NonFiniteError(f"the loss of step {self.trainer.steps} is {loss}")
        self.state.add(loss)
        self._watch(loss)
        done = self.steps.done - self.steps.epoch * self.steps.per_epoch
        self.show(self.steps.epoch + 1, done, self.steps.per_epoch)
        every = self.checkpoints.every if self.checkpoints is not None else None
        if every and self.steps.done % every == 0 and not self.steps.epoch_is_over:
            self._save()

    def _watch(self, loss: float) -> None:
        """Say once that the loss explodes."""
        self.losses.append(loss)
        if len(self.losses) < WINDOW:
            return
        mean = sum(self.losses) / WINDOW
        if self.state.first is None:
            self.state.first = mean
        elif mean > EXPLODED * abs(self.state.first) and not self.state.exploded:
            self.state.exploded = True
            self.say(
                f"the loss explodes: {mean:.4g} at step {self.steps.done}, after {self.state.first:.4g} at first. A "
                "smaller learning rate may help"
            )

    def _end_epoch(self) -> None:
        epoch = self.steps.epoch + 1
        result = self._evaluate(epoch)
        line = f"epoch {epoch}: training loss {self.state.mean_loss():.4f}"
        self.state.begin_epoch(epoch)
        self._save()
        self.say(line if result is None else f"{line}; validation {result}")

    def _evaluate(self, epoch: int) -> Evaluation | None:
        """Evaluate, where there is validation data, and keep the state if it is the best."""
        if self.validation is None:
            return None
        result = Evaluation.of(self.trainer.evaluate(self._until_stopped(self.validation)), epoch)
        if self.state.best is None or result.is_better(self.state.best):
            self.state.best = result
            if self.checkpoints is not None:
                self._write(self.checkpoints.best)
        return result

    def _until_stopped(self, data: DataSet) -> Iterator[Batch]:
        for batch in evaluation_batches(data, self.batch):
            if self.stop():
                raise _Stopped
            yield batch

    def _go_back(self, error: NonFiniteError) -> None:
        """Go back to the last state on disk, and leave out the last step that was taken."""
        if self.checkpoints is None:
            raise error
        skipped, best = [*self.state.skipped, self.last], self.state.best
        path = self.trainer.restore(self.checkpoints.path).path
        self._load(path, self.trainer.notes["progress"])
        self.state.skipped, self.state.best = skipped, best
        if len(skipped) > self.tolerate:
            stopped = f"Stopped: the last good state, of step {self.trainer.steps}, is in '{path}'"
            raise type(error)(error.what, stopped, error.advice) from error
        self.say(f"{error.what}: that step is left out, from the state of step {self.trainer.steps} on")

    def _load(self, path: str, notes: Mapping[str, Any]) -> None:
        try:
            self.state = Progress.from_notes(path, notes, self.state.run)
            self.steps = TrainingSteps(self.recipe, self.data, self.batch, self.seed, notes["position"])
            self.losses = deque(notes["losses"], maxlen=WINDOW)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"what '{path}' says of its run cannot be read: {error!r}") from error

    def _save(self, keep: int | None = None) -> None:
        """Write the state, where there is a place for it."""
        if self.checkpoints is not None:
            self._write(self.checkpoints.path, keep or self.checkpoints.keep)

    def _write(self, path: str | os.PathLike[str], keep: int = 1) -> None:
        self.trainer.check_finite()
        position = {"position": self.steps.position, "steps": self.trainer.steps, "losses": list(self.losses)}
        self.trainer.notes["progress"] = self.state.to_notes() | position
        self.trainer.save(path, keep=keep)

    def _refuse_to_overwrite(self, checkpoints: Checkpoints, *, resumes: bool) -> None:
        check_folder(checkpoints.path)
        path = followed(checkpoints.path)
        own = [path, *older_of(path)]
        restored = self.trainer.restored
        if restored is None or followed(restored.path) not in own:
            own = []
        elif resumes:
            own.append(checkpoints.best)
        other = [each for each in (path, *older_of(path), checkpoints.best) if each.exists() and each not in own]
        if other and not checkpoints.overwrite:
            raise CheckpointError(
                f"'{other[0]}' is there already, and this run did not start from it: go on from it, choose another "
                "name, or allow it with overwrite=True"
            )

    def _outcome(self, *, finished: bool) -> Outcome:
        return Outcome(finished, self.steps.done, self.steps.total, self.steps.epoch + 1, self.state.best)
