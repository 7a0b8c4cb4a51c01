"""Commands run in the process of a test."""

from __future__ import annotations

import contextlib
import io
import sys

import pytest

from pock_tvm import cli


def run_command(*words: object) -> tuple[int, str]:
    """Run ``pock`` with arguments; return its exit code and all that it prints."""
    text = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        patch.setattr(sys, "argv", ["pock", *map(str, words)])
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0), text.getvalue()
    return 0, text.getvalue()
