"""The command ``pock``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import typer

from ..errors import NonFiniteError, PockError, PockWarning
from . import calibrating, choosing, deploying, programs, remote, training, tuning
from .common import app, as_options

__all__ = ["app", "main"]


def main() -> None:
    """Run the command; report a user's error in one line, with exit code 2, or 3 for values that are not finite."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", PockWarning)
            warnings.showwarning = _shown(warnings.showwarning)
            code = app(standalone_mode=False)
    except NonFiniteError as error:
        _refuse(str(error), 3)
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


def _refuse(text: str, code: int = 2) -> NoReturn:
    print(f"pock: {as_options(text)}", file=sys.stderr)
    sys.exit(code)


def _shown(otherwise: Callable[..., None]) -> Callable[..., None]:
    """Wrap ``warnings.showwarning``: our own warnings take one line each."""

    def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if issubclass(category, PockWarning):
            print(f"pock: warning: {as_options(str(message))}", file=sys.stderr)
        else:
            otherwise(message, category, *rest, **named)

    return show
