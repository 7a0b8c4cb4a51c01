"""All errors that a user can meet. Each names what is at fault and says what to do."""

from __future__ import annotations

from collections.abc import Sequence

from relay_passes.errors import BatchError, MissingGradient, Obstacle, PassError, PockError

__all__ = [
    "BatchError",
    "BuildError",
    "CheckError",
    "CheckpointError",
    "CompilerError",
    "ContributionError",
    "DataError",
    "InputError",
    "MemoryBudgetError",
    "MissingGradient",
    "ModelError",
    "Obstacle",
    "OptionError",
    "PassError",
    "PockError",
    "PockWarning",
    "ProgramError",
    "SchemeError",
]


class PockWarning(UserWarning):
    """Something that a user should know, and that stands in nobody's way."""


class OptionError(PockError):
    """An argument of a function, or an option of a class, is of the wrong kind."""


class ModelError(PockError):
    """A model cannot be imported as it is; ``obstacles`` are all that stand in the way, where a front end lists
    them."""

    def __init__(self, message: str, obstacles: Sequence[Obstacle] = ()) -> None:
        super().__init__(message)
        self.obstacles = tuple(obstacles)


class CheckError(PockError):
    """A compiled program does not do what the framework does that its model comes from, or that cannot be found
    out."""


class SchemeError(PockError):
    """A scheme does not fit its model."""


class MemoryBudgetError(PockError):
    """No program holds a memory budget; ``smallest`` is the least that would do, in bytes."""

    def __init__(self, message: str, smallest: int) -> None:
        super().__init__(message)
        self.smallest = smallest


class BuildError(PockError):
    """A kernel cannot be built."""


class CompilerError(PockError):
    """The compiler itself is at fault."""


class InputError(PockError):
    """A step or a prediction was given data of a wrong shape, type or range."""


class ProgramError(PockError):
    """A program file is damaged, incomplete or made for something else."""


class CheckpointError(PockError):
    """A checkpoint or a state does not fit the program, or is damaged."""


class DataError(PockError):
    """A data set on disk cannot be used."""


class ContributionError(PockError):
    """Contributions do not fit the model or the task, or are damaged."""
