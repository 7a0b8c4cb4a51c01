"""The errors of the passes. ``PockError`` is the root of all errors of this project."""

from __future__ import annotations


class PockError(Exception):
    """Something a user can put right; the message says what and how."""


class PassError(PockError):
    """A pass was given IR or options that it cannot work on."""


class BatchError(PassError):
    """A network cannot run on parts of its batch."""


class MissingGradient(PockError):
    """An operator on the path from a trained parameter to the loss has no gradient rule."""
