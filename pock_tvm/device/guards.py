"""Checks of a training step that found a number that is not finite: what it is, and what has become of the state.

A check is a record of the manifest's call list: ``["check", [place], count, dtype, kind, name, written]``, or that of
two factors. Its values are those of ``relay_passes.memory.call_list``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import NonFiniteError, NonFiniteInputError

CHECK = "check"
INPUT, LOSS, GRADIENT, STATISTIC, FACTOR = "input", "loss", "gradient", "statistic", "factor"
NOTHING, SUMS, STATE = "nothing", "sums", "state"
"""In-place writes of a step before a check: nothing, gradient sums alone, or weights, statistics and states of
the optimizer."""

HOLDS = "it holds NaN or infinity"
OF_GRADIENTS = "Lower the learning rate, or look at the data; guard='step' changes nothing"
TEXTS = {
    INPUT: ("input '{}'", HOLDS, "Look at the data; if infinities are meant, as in a mask, compile with guard='off'"),
    LOSS: ("the loss", HOLDS, "Lower the learning rate, or look at the data: labels that are all ignored have no mean"),
    GRADIENT: ("the gradient of '{}'", HOLDS, OF_GRADIENTS),
    FACTOR: (
        "the gradient of '{}'",
        "its factors hold NaN or infinity, or it may overflow",
        OF_GRADIENTS,
    ),
    STATISTIC: ("the new running statistic '{}'", HOLDS, "Look at the data, and at the scale of the values before it"),
}
"""For each kind of tensor its name in messages, what is wrong with it, and what to do."""


def is_checked(entry: Mapping[str, Any]) -> bool:
    """Whether an entry point makes any checks."""
    return any(call[0] == CHECK for call in entry["calls"])


@dataclass(frozen=True)
class Found:
    """Tensor that is not finite."""

    kind: str
    name: str
    written: str

    @classmethod
    def at(cls, entry: Mapping[str, Any], position: int) -> Found:
        """Read a check by its position in the call list of an entry point."""
        kind, name, written = entry["calls"][position][4:7]
        return cls(kind, name, written)

    def error(self, dropped: int) -> NonFiniteError:
        """Return an error that names the tensor, and says what has become of the state.

        ``dropped`` counts the steps before this one whose gradient sums are lost.
        """
        what, holds, advice = TEXTS[self.kind]
        what = "the target" if (self.kind, self.name) == (INPUT, "target") else what.format(self.name)
        consequence = "Nothing has changed"
        if self.written == STATE:
            consequence = "Updates made before it in that step stay: restore a checkpoint"
        elif dropped:
            consequence = f"Earlier steps of the same update ({dropped}) are dropped; nothing else has changed"
        kind = NonFiniteInputError if self.kind == INPUT else NonFiniteError
        return kind(f"{what} is not finite: {holds}", consequence, advice)
