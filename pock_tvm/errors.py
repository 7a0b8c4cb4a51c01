"""All errors that a user can meet. Each names what is at fault and says what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from relay_passes import errors as passes
from relay_passes.errors import Obstacle

from .device.errors import (
    CheckpointError,
    DeviceError,
    InputError,
    NonFiniteError,
    NonFiniteInputError,
    OptionError,
    PockError,
    PockWarning,
    ProgramError,
    WriteError,
)

__all__ = [
    "BatchError",
    "BuildError",
    "CheckError",
    "CheckpointError",
    "CompilerError",
    "ContributionError",
    "DataError",
    "DatabaseError",
    "DeviceError",
    "InputError",
    "MemoryBudgetError",
    "MissingGradient",
    "ModelError",
    "NonFiniteError",
    "NonFiniteInputError",
    "NothingFrozenError",
    "Obstacle",
    "OptionError",
    "PassError",
    "PockError",
    "PockWarning",
    "ProgramError",
    "SchemeError",
    "WriteError",
    "of_passes",
]


class NothingFrozenError(OptionError):
    """No layer before the first trained parameter can be computed in eight bits."""


class ModelError(PockError):
    """A model cannot be imported as it is; ``obstacles`` are all that stand in the way, where a front end lists
    them."""

    def __init__(self, message: str, obstacles: Sequence[Obstacle] = ()) -> None:
        super().__init__(message)
        self.obstacles = tuple(obstacles)


class PassError(PockError, passes.PassError):
    """A pass cannot work on a model or with an option."""


class BatchError(PassError, passes.BatchError):
    """A network cannot run on parts of its batch."""


class MissingGradient(PassError, passes.MissingGradient):
    """Something on the path from a trained parameter to the loss cannot be differentiated as the scheme wants it."""


@contextlib.contextmanager
def of_passes() -> Iterator[None]:
    """Raise the errors of passes as this project's. Passes know nothing of it: they work in any TVM pipeline."""
    try:
        yield
    except PockError:
        raise
    except passes.PassError as error:
        kinds = (MissingGradient, BatchError, PassError)
        kind = next(kind for kind in kinds if isinstance(error, kind.__bases__[1]))
        raise kind(str(error)) from error


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


class DataError(PockError):
    """A data set on disk cannot be used."""


class DatabaseError(PockError):
    """A tuning database is for another target or version of TVM, or cannot be read."""


class ContributionError(PockError):
    """Contributions do not fit the model or the task, or are damaged."""
