"""The table of gradient rules: one function for each operand of each operator.

A rule gets one :class:`Use` and returns the gradient of the loss with respect to that operand, in the operand's shape.
The backward pass calls a rule only where that gradient is wanted, so nothing is built in order to be thrown away. To
add an operator, write one function an operand and one row in ``tests/numeric/test_operators.py``. (The registry with an
entry an operand is autograd's idea, ``autograd/numpy/numpy_vjps.py``.)
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
    """One use of a value by an operator, on the way from a trained parameter to the loss."""

    call: relax.Call
    """The forward call."""
    result: relax.Var
    """Its result in the forward graph: reading it keeps it alive until the backward graph."""
    grad: Expr
    """The gradient of the loss with respect to the result. A tuple result has one field each, None where nothing reads
    it."""
    field: int | None = None
    """The position in a tuple operand, as in ``concat``."""
    piece: TrainedPart | None = None
    """Where the operand is a parameter trained in part: which part. Only rules registered with ``pieces`` see one."""

    @property
    def args(self) -> list[Expr]:
        return self.call.args


Rule = Callable[[Use], Expr]


@dataclass(frozen=True)
class GradientRule:
    """The rule of one operand."""

    rule: Rule
    pieces: bool


def gradient(op: str, operand: int = 0, *, pieces: bool = False) -> Callable[[Rule], Rule]:
    """Register the rule for one operand of ``op``. With ``pieces`` it can give the gradient of a part of the
    operand.

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
    """Declare operators whose gradient is zero wherever it exists (rounding, comparison): no path leads through
    them."""
    for op in ops:
        describe(op, is_flat=True)


def is_flat(op: str) -> bool:
    """Whether no gradient ever passes through ``op``."""
    return record_of(op).is_flat


def rule_for(op: str, operand: int) -> Rule | None:
    """The rule of an operand, None where there is none."""
    entry = record_of(op).gradients.get(operand)
    return entry.rule if entry else None


def takes_pieces(op: str, operand: int) -> bool:
    """Whether a parameter read there can be trained in part."""
    entry = record_of(op).gradients.get(operand)
    return entry is not None and entry.pieces


def supported_operators() -> list[str]:
    """The names of all operators with at least one rule, sorted."""
    return [record.name for record in all_records() if record.gradients or record.is_flat]
