"""Table of gradient rules: one function for each operand of each operator.

A rule takes one :class:`Use` and returns the gradient of the loss with respect to that operand, in the operand's shape.
The backward pass calls a rule only where that gradient is wanted, so it builds nothing that is dropped later. To add an
operator, write one function for each operand and one row in ``tests/numeric/test_operators.py``. (Source: autograd's
registry, one entry an operand, ``autograd/numpy/numpy_vjps.py``.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import relax

from ..errors import RegistrationError
from ..ir import Expr
from ..ir.trained_part import TrainedPart
from ..operators.record import all_records, describe, open_record, record_of


@dataclass(frozen=True)
class Use:
    """Use of a value by an operator, on a path from a trained parameter to the loss."""

    call: relax.Call
    """Forward call."""
    result: relax.Var
    """Result in the forward graph. Reading it extends its live range into the backward graph."""
    grad: Expr
    """Gradient of the loss with respect to the result. A tuple result has one field each, None for unread fields."""
    field: int | None = None
    """Position in a tuple operand, as in ``concat``."""
    piece: TrainedPart | None = None
    """Trained part, if the operand is a parameter trained in part. Only rules registered with ``pieces`` receive
    one."""

    @property
    def args(self) -> list[Expr]:
        return self.call.args


Rule = Callable[[Use], Expr]


@dataclass(frozen=True)
class GradientRule:
    """Rule of one operand."""

    rule: Rule
    pieces: bool


def gradient(op: str, operand: int = 0, *, pieces: bool = False) -> Callable[[Rule], Rule]:
    """Register the gradient rule of one operand of ``op``. With ``pieces`` the rule can return the gradient of a part.

    Raises
    ------
    RegistrationError
        The operand has a rule already.
    """

    def register(rule: Rule) -> Rule:
        rules = open_record(op).gradients
        if operand in rules:
            raise RegistrationError(f"operand {operand} of '{op}' has a gradient already")
        rules[operand] = GradientRule(rule, pieces)
        return rule

    return register


def flat(*ops: str) -> None:
    """Declare operators whose gradient is zero wherever it exists (rounding, comparison): no gradient path leads
    through them."""
    for op in ops:
        describe(op, is_flat=True)


def is_flat(op: str) -> bool:
    """Return whether no gradient ever passes through ``op``."""
    return record_of(op).is_flat


def rule_for(op: str, operand: int) -> Rule | None:
    """Return the rule of an operand, or None if there is none."""
    entry = record_of(op).gradients.get(operand)
    return entry.rule if entry else None


def takes_pieces(op: str, operand: int) -> bool:
    """Return whether a parameter that is this operand can be trained in part."""
    entry = record_of(op).gradients.get(operand)
    return entry is not None and entry.pieces


def supported_operators() -> list[str]:
    """Return the names of all operators that a gradient passes through, sorted. Flat ones are left out: none does."""
    return [record.name for record in all_records() if record.gradients]
