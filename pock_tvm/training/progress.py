"""How far a run has come: what a checkpoint keeps of it, beside the trainer's state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..device.arguments import is_number
from ..device.form import Maybe, check_form, is_extent, is_real
from ..device.reading import reading
from ..errors import CheckpointError

PROGRESS = {
    "run": dict,
    "reported": is_extent,
    "loss_sum": is_real,
    "loss_count": is_extent,
    "first": Maybe(is_real),
    "exploded": bool,
    "best": Maybe({"loss": is_real, "accuracy": Maybe(is_real), "epoch": is_extent}),
    "skipped": [[is_extent]],
    "losses": [is_real],
    "position": {"epoch": is_extent, "samples": is_extent, "order": dict, "random": dict},
}
NOTES = {
    "classes": Maybe([str]),
    "preprocessing": Maybe({"mean": [is_number], "std": [is_number]}),
    "progress": Maybe(PROGRESS),
}
"""The form of what a run keeps in a trainer's notes, beside whatever others keep there."""


def check_notes(notes: Any) -> None:
    """Check the form of a trainer's notes, which may come from anybody's checkpoint.

    Raises
    ------
    CheckpointError
        Names the entry that has another form.
    """
    with reading(CheckpointError, "the checkpoint's notes cannot be read: {}"):
        check_form(notes, NOTES, "notes")


@dataclass(frozen=True)
class Evaluation:
    """A result of :meth:`pock_tvm.Trainer.evaluate`."""

    loss: float
    accuracy: float | None = None
    """In [0, 1]; None without classes."""
    epoch: int = 0
    """The epoch after which it was measured; 0 for the state before the first step."""

    @classmethod
    def of(cls, result: Mapping[str, float], epoch: int = 0) -> Evaluation:
        """A result as the trainer returns it."""
        return cls(result["loss"], result.get("accuracy"), epoch)

    def is_better(self, other: Evaluation) -> bool:
        """Whether it has the higher accuracy, or where that is equal the lower loss; NaN is worse than any."""
        return self._rank() > other._rank()

    def _rank(self) -> tuple[float, float]:
        return self.accuracy or 0.0, -math.inf if math.isnan(self.loss) else -self.loss

    def __str__(self) -> str:
        text = f"loss {self.loss:.4f}"
        return text if self.accuracy is None else f"accuracy {100 * self.accuracy:.2f} %, {text}"


@dataclass
class Progress:
    """The part of a run's progress that is no position in the data."""

    run: dict[str, Any]
    """Identity of a run, which has to be equal for it to go on: recipe, seed, and fingerprint of the data."""
    reported: int = 0
    """Epochs that were evaluated and reported."""
    loss_sum: float = 0.0
    loss_count: int = 0
    """Of the current epoch."""
    first: float | None = None
    """The mean loss of the first steps."""
    exploded: bool = False
    """Whether it was said that the loss explodes."""
    best: Evaluation | None = None
    skipped: list[list[int]] = field(default_factory=list)
    """Steps that are left out since they met a value that is not finite, by epoch and samples."""

    def add(self, loss: float) -> None:
        """Count a step's loss."""
        self.loss_sum, self.loss_count = self.loss_sum + loss, self.loss_count + 1

    def mean_loss(self) -> float:
        """The mean training loss of the epoch; NaN if every step of it was left out."""
        return self.loss_sum / self.loss_count if self.loss_count else math.nan

    def begin_epoch(self, reported: int) -> None:
        """Begin to count anew."""
        self.reported, self.loss_sum, self.loss_count = reported, 0.0, 0

    def to_notes(self) -> dict[str, Any]:
        """The progress in plain values of JSON."""
        return asdict(self)

    @classmethod
    def from_notes(cls, path: str, notes: Mapping[str, Any], run: Mapping[str, Any]) -> Progress:
        """The progress that :meth:`to_notes` made, of the checkpoint at ``path``.

        Raises
        ------
        CheckpointError
            It is of another run than ``run``.
        """
        old = notes["run"]
        for name in {**run, **old}:
            if old.get(name) != run.get(name):
                raise CheckpointError(
                    f"the run of '{path}' had {_named(name, old.get(name))}, and this one has "
                    f"{run.get(name)}: resume it with the same, or start a new run from it"
                )
        names = ("reported", "loss_sum", "loss_count", "first", "exploded", "skipped")
        best = None if notes["best"] is None else Evaluation(**notes["best"])
        return cls(dict(run), best=best, **{name: notes[name] for name in names})


def _named(name: str, value: Any) -> str:
    """An entry of a run in one short line: it comes from a file."""
    text = f"{name.replace('_', ' ')} {value}"
    return text if text.isprintable() and len(text) <= 80 else f"{name!r:.40} {value!r:.40}"
