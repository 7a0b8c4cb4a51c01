"""Ctrl-C and SIGTERM as a wish that a command fulfils when it suits it."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class Interruption:
    """Context manager that notes the first SIGINT or SIGTERM; a second one has its usual effect."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal: int | None = None
        """Signal that came; None as long as none did."""
        self._before: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """The code that a shell expects of a command that a signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (self.signal or 0)

    def __enter__(self) -> Interruption:
        self._before = {each: signal.signal(each, self._note) for each in self.SIGNALS}
        return self

    def __exit__(self, *_error: object) -> None:
        self._restore()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)
