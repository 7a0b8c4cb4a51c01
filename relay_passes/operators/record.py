"""One record an operator: all that the passes know of it.

Facts of Relax's operators stand here; those of our own are given with their registration (:func:`register_operator`).
Rules stand in the room of the pass that calls them, and are put into the record by :func:`rule`. Nothing is said twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, TypeVar

from ..errors import RegistrationError
from ..ir import Expr, op_name


class Kind(Enum):
    """What operators do that several passes treat alike."""

    OTHER = auto()
    ELEMENTWISE = auto()
    """Compute each element of the result from the same element of the operands, which may broadcast."""
    RESHAPE = auto()
    """Give the same elements in the same order in another shape."""
    REDUCTION = auto()
    """Give one number for all positions along some axes."""
    PER_IMAGE = auto()
    """Treat the images of the first operand apart, whatever else they read."""


@dataclass
class OperatorRecord:
    """What is known of one operator. Where a rule is None, the passes have no special treatment for it."""

    name: str
    kind: Kind = Kind.OTHER
    is_alias: bool = False
    """Computes nothing in a planned program: result and operand share memory."""
    is_flat: bool = False
    """The gradient is zero wherever it exists (rounding, comparison): no path leads through."""
    gradients: dict[int, Any] = field(default_factory=dict)
    """Gradient rules by operand: see ``gradients.registry``."""
    reads: Callable[..., Any] | None = None
    """Positions of the operands that a selection of the result reads: see ``analysis.access``."""
    macs: Callable[..., int] | None = None
    """Multiplications of a product with a weight, its second operand: see ``analysis.macs``."""
    channels_last: Callable[..., Any] | None = None
    """The operator on channels-last images: see ``canonical.channels_last``."""
    kernel: Callable[..., Any] | None = None
    """The kernels to call in its place; TVM's own where None: see ``kernels.choose_kernels``."""


_RECORDS: dict[str, OperatorRecord] = {}


def record_of(value: Expr | str) -> OperatorRecord:
    """The record of an operator, by its name or by a call of it; an empty one for anything else."""
    name = value if isinstance(value, str) else op_name(value)
    return _RECORDS.get(name) or OperatorRecord(name)


def kind_of(value: Expr) -> Kind:
    """The kind of the operator that a value calls."""
    return record_of(value).kind


def all_records() -> list[OperatorRecord]:
    """The records of all operators that anything is known of, by name."""
    return [_RECORDS[name] for name in sorted(_RECORDS)]


def describe(name: str, **facts: Any) -> None:
    """Put facts or rules into the record of an operator.

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
    """The record of an operator to write to; a new one where there is none."""
    return _RECORDS.setdefault(name, OperatorRecord(name))


Rule = TypeVar("Rule", bound=Callable[..., Any])


def rule(fact: str, *names: str) -> Callable[[Rule], Rule]:
    """Put the decorated function into the records of some operators, as their ``fact``."""

    def register(function: Rule) -> Rule:
        for name in names:
            describe(name, **{fact: function})
        return function

    return register


_KINDS = {
    Kind.ELEMENTWISE: """
        abs acos acosh add asin asinh atan atanh astype bitwise_and bitwise_or ceil clip cos cosh divide equal erf exp
        floor floor_divide floor_mod grad.no_grad greater greater_equal isfinite isinf isnan less less_equal log
        logical_and logical_not logical_or maximum minimum mod multiply negative nn.dropout nn.gelu nn.gelu_tanh
        nn.leakyrelu nn.relu nn.selu nn.silu nn.softplus not_equal ones_like power round rsqrt sigmoid sign sin sinh
        sqrt square subtract tan tanh trunc where zeros_like
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
