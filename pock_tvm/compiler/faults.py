"""Tells faults of the compiler from those of its users."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from relay_passes.ir import first_line

from ..errors import CompilerError, PockError, of_passes


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
