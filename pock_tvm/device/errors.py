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


class NonFiniteError(PockError):
    """A step met a value that is not finite: in an input, the loss, a gradient or a weight."""


class NonFiniteInputError(NonFiniteError, InputError):
    """A step was given an input or a target that is not finite."""
