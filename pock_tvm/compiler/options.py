"""Options of ``pock.compile``: which values they take."""

from __future__ import annotations

from typing import Any

from relay_passes.memory.order_updates import GUARDS

from ..device.arguments import FLAG, PATH, Kind, number, one_of, require, whole
from ..device.losses import KINDS, Loss
from ..device.optimizers import SGD, Adam
from ..errors import OptionError
from ..frontend.custom_loss import CustomLoss
from ..quantities import AMOUNT
from ..schemes.scheme import Scheme
from .database import Records
from .training_options import FROZEN, PRECISIONS

OPTIONS = {
    "scheme": one_of("""a pock.Scheme, such as Scheme.full() or Scheme({"*.bias": "full"})""", Scheme).or_none(),
    "loss": Kind(
        f"a pock.Loss, one of the names {', '.join(KINDS)}, or a function of (outputs, target)",
        lambda value: isinstance(value, str | Loss | CustomLoss) or (callable(value) and not isinstance(value, type)),
    ),
    "optimizer": one_of("pock.SGD(…), pock.Adam(…) or pock.AdamW(…)", SGD, Adam).or_none(),
    "batch_norm": Kind("'frozen' or 'batch'", lambda value: value in (None, "frozen", "batch")),
    "dropout": FLAG.or_none(),
    "accumulate": whole("a number of steps, at least 1", 1),
    "micro_batches": whole("a number of parts of a batch, at least 1", 1).or_none(),
    "clip_norm": number("a positive number", above=0).or_none(),
    "guard": Kind("'update', 'step' or 'off'", lambda value: value in GUARDS),
    "precision": Kind("'float32', 'bfloat16' or 'float16'", lambda value: value in PRECISIONS),
    "frozen": Kind("'float32' or 'int8'", lambda value: value in FROZEN),
    "max_drop": number("a positive number, such as 0.05", above=0).or_none(),
    "memory_budget": AMOUNT.or_none(),
    "copies": Kind("1 or 2", lambda value: value in (1, 2)),
    "dump": PATH.or_none(),
    "build": FLAG,
    "flash": AMOUNT.or_none(),
    "ram": AMOUNT.or_none(),
    "database": Kind("a path", lambda value: value is None or PATH.holds(value) or isinstance(value, Records)),
}
"""Valid values of the options of ``compile``, except those about inputs, which the front end checks."""


def check_options(**given: Any) -> None:
    """Check options by name.

    Raises
    ------
    OptionError
        One is of another kind, or two exclude each other. The message says what would do.
    """
    for name, value in given.items():
        require(name, value, OPTIONS[name])
    if given["batch_norm"] == "batch" and given["micro_batches"] not in (None, 1):
        raise OptionError(
            "batch_norm='batch' needs the whole batch at once: leave micro_batches out, or freeze batch norms"
        )
