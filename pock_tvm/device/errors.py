"""The errors that a device can meet, and the root of all of this project's."""

from __future__ import annotations


class PockError(Exception):
    """Something a user can put right; the message says what and how."""


class PockWarning(UserWarning):
    """Something that a user should know, and that stands in nobody's way."""


class OptionError(PockError):
    """An argument of a function, or an option of a class, is of the wrong kind."""


class InputError(PockError):
    """A step or a prediction was given data of a wrong shape, type or range."""


class ProgramError(PockError):
    """A program file is damaged, incomplete or made for something else."""


class CheckpointError(PockError):
    """A checkpoint or a state does not fit the program, or is damaged."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is missing, incomplete or altered: an older one may do."""


class DeviceError(PockError):
    """A device, remote or a GPU, is not there, cannot be reached, or does not answer any more."""


class WriteError(PockError, OSError):
    """A file cannot be written: the disk is full or read-only, or the folder is missing or forbidden."""


class NonFiniteError(PockError):
    """A step met a value that is not finite: in an input, the loss, a gradient or a weight.

    The message says what it is, what has become of the state, and what to do.
    """

    def __init__(self, what: str, consequence: str = "", advice: str = "") -> None:
        super().__init__(". ".join(filter(None, (what, consequence, advice))))
        self.what, self.advice = what, advice


class NonFiniteInputError(NonFiniteError, InputError):
    """A step was given an input or a target that is not finite."""
