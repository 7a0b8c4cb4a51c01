"""Tells faults of the compiler from those of its users."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

from relay_passes.ir import first_line

from ..errors import CompilerError, OptionError, PockError, of_passes

F = TypeVar("F", bound=Callable[..., Any])


@contextlib.contextmanager
def own_faults() -> Iterator[None]:
    """Turn exceptions of TVM or Python into a one-line error: users cannot act on a compiler's stack trace."""
    try:
        with of_passes():
            yield
    except (PockError, MemoryError, OSError):
        raise
    except Exception as error:
        raise CompilerError(
            f"the compiler failed, which is its fault and not yours: {type(error).__name__}: {first_line(error)}. "
            "Please report it, with the model"
        ) from error


def for_users(function: F) -> F:
    """Make a function of the compiler refuse options that it does not have, and tell its own faults
    (:func:`own_faults`)."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        unknown = [name for name in options if name not in signature.parameters]
        if unknown:
            names = ", ".join(signature.parameters)
            raise OptionError(f"{function.__name__} has no option '{unknown[0]}'; its options are {names}")
        signature.bind(*args, **options)  # a missing argument is a TypeError, as anywhere in Python
        with own_faults():
            return function(*args, **options)

    return cast("F", call)
