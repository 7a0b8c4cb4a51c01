"""The command ``pock``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import typer

from ..errors import PockError, PockWarning
from . import choosing, programs
from .common import app, as_options

__all__ = ["app", "main"]


def main() -> None:
    """Run the command; report a user's error in one line, with exit code 2."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", PockWarning)
            warnings.showwarning = _shown(warnings.showwarning)
            code = app(standalone_mode=False)
    except (PockError, OSError) as error:
        _refuse(str(error))
    except typer.Abort:
        sys.exit(130)
    except Exception as error:
        if not hasattr(error, "format_message"):  # Typer's errors of usage have this method
            raise
        _refuse(error.format_message())
    if isinstance(code, int):  # Typer returns the code of typer.Exit
        sys.exit(code)


def _refuse(text: str) -> NoReturn:
    print(f"pock: {as_options(text)}", file=sys.stderr)
    sys.exit(2)


def _shown(otherwise: Callable[..., None]) -> Callable[..., None]:
    """Wrap ``warnings.showwarning``: our own warnings take one line each."""

    def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if issubclass(category, PockWarning):
            print(f"pock: warning: {as_options(str(message))}", file=sys.stderr)
        else:
            otherwise(message, category, *rest, **named)

    return show
