"""The errors of the passes."""

from __future__ import annotations

from dataclasses import dataclass


class PassError(Exception):
    """A pass was given IR or options that it cannot work on."""


class BatchError(PassError):
    """A network cannot run on parts of its batch."""


class MissingGradient(PassError):
    """Something on the path from a trained parameter to the loss cannot be differentiated as the scheme wants it."""


class RegistrationError(Exception):
    """An operator, or a rule or fact of one, was registered twice: a mistake in the code that registers it."""


@dataclass(frozen=True)
class Obstacle:
    """One thing that stands between a model and its program, or that a user should know of it."""

    layer: str
    """The path of the PyTorch module; empty for the outermost one, and where no layer is at fault."""
    operator: str
    """By PyTorch's name where it is known, else by Relax's; empty where no operator is at fault."""
    parameter: str
    """The parameter, input or pattern that it is about; empty where there is none."""
    reason: str
    """What is the matter, as a sentence that stands alone."""
    way_out: str = ""
    """What a user can do, as sentences."""
    blocking: bool = True
    """False for a warning: there is a program, but not quite what one may expect."""

    def __str__(self) -> str:
        return f"{self.reason}. {self.way_out}" if self.way_out else self.reason
