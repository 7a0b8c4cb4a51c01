"""The schemes that whole networks are trained with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pock_tvm as pock


def half_of_the_weights(exported: Any) -> pock.Scheme:
    """The published scheme, with half of each weight's channels."""
    rules = pock.Scheme.pockengine(exported).rules
    head = [name for name in rules if name.startswith(("classifier", "head", "lm_head", "linear"))]
    return pock.Scheme({n: 0.5 if w == 1.0 and n not in head else w for n, w in rules.items()})


SCHEMES: dict[str, Callable[[Any], pock.Scheme]] = {
    "full": lambda _exported: pock.Scheme.full(),
    "biases": pock.Scheme.bias_only,
    "sparse": half_of_the_weights,
}
"""A scheme for an exported network, by name."""
