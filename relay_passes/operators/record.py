"""Operator records: one for each operator, with everything the passes know of it.

Facts about Relax's operators are in this file, those about ours in their registration (:func:`register_operator`).
Rules are in the package of the pass that calls them, and enter the record through :func:`rule`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, TypeVar

from ..errors import RegistrationError
from ..ir import Expr, op_name


class Kind(Enum):
    """Classes of operators that several passes treat in the same way."""

    OTHER = auto()
    ELEMENTWISE = auto()
    """Compute each element of the result from the same element of the operands, which may broadcast."""
    RESHAPE = auto()
    """Change the shape; elements and their order stay."""
    REDUCTION = auto()
    """Reduce some axes."""
    PER_IMAGE = auto()
    """Process each image of the first operand independently. Other operands may be read whole."""


@dataclass
class OperatorRecord:
    """Facts and rules of one operator. Where a rule is None, passes use their default."""

    name: str
    kind: Kind = Kind.OTHER
    is_alias: bool = False
    """True if result and operand share memory in a planned program: nothing is computed."""
    is_flat: bool = False
    """True if the gradient is zero wherever it exists (rounding, comparison). No gradient path leads through it."""
    gradients: dict[int, Any] = field(default_factory=dict)
    """Gradient rules by operand: see ``gradients.registry``."""
    reads: Callable[..., Any] | None = None
    """Finds the operand positions that a selection of the result reads: see ``analysis.access``."""
    macs: Callable[..., int] | None = None
    """Counts the multiply-accumulates of a product with a weight, its second operand: see ``analysis.macs``."""
    channels_last: Callable[..., Any] | None = None
    """Rewrites the operator for channels-last images: see ``canonical.channels_last``."""
    kernel: Callable[..., Any] | None = None
    """Legalises the operator; None for TVM's own legalisation: see ``kernels.legalization``."""


_RECORDS: dict[str, OperatorRecord] = {}


def record_of(value: Expr | str) -> OperatorRecord:
    """Return the record of an operator, given its name or a call of it; an empty one for anything else."""
    name = value if isinstance(value, str) else op_name(value)
    return _RECORDS.get(name) or OperatorRecord(name)


def kind_of(value: Expr) -> Kind:
    """Return the kind of the operator that a value calls."""
    return record_of(value).kind


def all_records() -> list[OperatorRecord]:
    """Return all records, sorted by operator name."""
    return [_RECORDS[name] for name in sorted(_RECORDS)]


def describe(name: str, **facts: Any) -> None:
    """Add facts or rules to the record of an operator.

    Raises
    ------
    RegistrationError
        The record has one of them already.
    """
    record, empty = open_record(name), OperatorRecord(name)
    for fact, value in facts.items():
        if getattr(record, fact) != getattr(empty, fact):
            raise RegistrationError(f"'{name}' has '{fact}' already")
        setattr(record, fact, value)


def open_record(name: str) -> OperatorRecord:
    """Return the record of an operator for writing; create it if there is none."""
    return _RECORDS.setdefault(name, OperatorRecord(name))


Rule = TypeVar("Rule", bound=Callable[..., Any])


def rule(fact: str, *names: str) -> Callable[[Rule], Rule]:
    """Register the decorated function as the ``fact`` of some operators."""

    def register(function: Rule) -> Rule:
        for name in names:
            describe(name, **{fact: function})
        return function

    return register


_KINDS = {
    Kind.ELEMENTWISE: """
        abs acos acosh add asin asinh atan atan2 atanh astype bitwise_and bitwise_not bitwise_or bitwise_xor ceil clip
        cos cosh divide equal erf exp floor floor_divide floor_mod full_like grad.no_grad greater greater_equal isfinite
        isinf isnan left_shift less less_equal log log_add_exp logical_and logical_not logical_or logical_xor maximum
        minimum mod multiply negative nn.dropout nn.gelu nn.gelu_tanh nn.leakyrelu nn.prelu nn.relu nn.selu nn.silu
        nn.softplus not_equal ones_like power right_shift round rsqrt sigmoid sign sin sinh sqrt square subtract tan
        tanh trunc where zeros_like
    """,
    Kind.RESHAPE: "expand_dims flatten reshape squeeze",
    Kind.REDUCTION: "max mean min prod std sum variance",
    Kind.PER_IMAGE: """
        image.resize2d image.resize3d nn.conv1d nn.conv2d nn.conv3d nn.conv1d_transpose nn.conv2d_transpose
        nn.conv3d_transpose nn.max_pool1d nn.max_pool2d nn.max_pool3d nn.avg_pool1d nn.avg_pool2d nn.avg_pool3d
        nn.adaptive_avg_pool1d nn.adaptive_avg_pool2d nn.adaptive_avg_pool3d
    """,
}
for _kind, _names in _KINDS.items():
    for _name in _names.split():
        describe(f"relax.{_name}", kind=_kind)
describe("relax.reshape", is_alias=True)
