"""The command ``pock``."""

from __future__ import annotations

import sys

import typer

from ..errors import PockError
from . import choosing, programs
from .common import app

__all__ = ["app", "main"]


def main() -> None:
    """Run the command; a fault of the user's is one clear line and exit code 2."""
    try:
        app(standalone_mode=False)
    except PockError as error:
        print(f"pock: {error}", file=sys.stderr)
        sys.exit(2)
    except typer.Abort:
        sys.exit(130)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except Exception as error:
        if not hasattr(error, "format_message"):  # what Typer says of a wrong option or argument
            raise
        print(f"pock: {error.format_message()}", file=sys.stderr)
        sys.exit(2)
