"""Random numbers: the operators that :mod:`pock_tvm.frontend.torch_random` puts into a program."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import relax

from relay_passes.ir import Expr
from relay_passes.operators import random

from .registry import Site, converter


@converter("pock_tvm::drop.default")
def drop(
    at: Site, x: Expr, shape: Sequence[int], rate: float, scale: float, shift: float, other: float, expected: float,
    stream: int,
) -> Expr:  # fmt: skip
    """``scale * x + shift``, or ``other`` with probability ``rate``; in inference ``expected * x``."""
    drawn = at.emit(random.keep(relax.const(random.NOTHING), count=math.prod(shape), rate=rate, stream=stream))
    kept = at.reshape(drawn, shape)
    return at.emit(random.drop(at.cast(x), kept, scale=scale, shift=shift, other=other, expected=expected))


@converter("pock_tvm::uniform.default")
def uniform(at: Site, shape: Sequence[int], stream: int) -> Expr:
    """Uniform numbers in [0, 1)."""
    return at.reshape(
        at.emit(random.uniform(relax.const(random.NOTHING), count=math.prod(shape), stream=stream)), shape
    )


@converter("pock_tvm::normal.default")
def normal(at: Site, shape: Sequence[int], stream: int) -> Expr:
    """Numbers of mean 0 and deviation 1."""
    return at.reshape(at.emit(random.normal(relax.const(random.NOTHING), count=math.prod(shape), stream=stream)), shape)
