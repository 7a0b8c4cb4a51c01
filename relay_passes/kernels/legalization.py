"""Registers legalisation rules, which replace operators by calls of kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax
from tvm.ir.transform import Pass

from schedules.kernels import OPAQUE, indexing
from schedules.target import Target

from ..ir import Expr, bytes_of, is_static, shape_of
from ..operators.record import all_records, rule

Legalize = Callable[[relax.BlockBuilder, relax.Call], relax.Expr]
"""Legalisation rule: takes a call of an operator, returns a call of a kernel. Further calls go to the builder."""


OUT_ELEMENTWISE_FUSABLE = 4
"""``OpPatternKind`` of products: fuses with consumers, not with producers, because a product reads each operand element
many times (``tvm::relay::OpPatternKind``)."""


ELEMENTWISE = 0
"""``OpPatternKind`` of operators that may be fused into a product's epilogue."""


REDUCTION = 3
"""``OpPatternKind`` of reductions, which fuse with what computes their operand. TVM does not see that a sum of rows in
parts is one."""


INJECTIVE = 2
"""``OpPatternKind`` of operators that move elements. TVM classifies padding at the end and slicing from the start as
element-wise, since the indices match. Fused into a product, they would leave elements of the result unwritten."""


def legalizes(*names: str) -> Callable[[Legalize], Legalize]:
    """Register the decorated function as the legalisation of some operators, for any target."""

    def register(legalize: Legalize) -> Legalize:
        rule("kernel", *names)(lambda _target: legalize)
        return legalize

    return register


ForTarget = Callable[[Target, relax.BlockBuilder, relax.Call], relax.Expr]


def legalizes_for_target(*names: str) -> Callable[[ForTarget], ForTarget]:
    """Register the decorated function, which takes the target first, as the legalisation of some operators."""

    def register(legalize: ForTarget) -> ForTarget:
        rule("kernel", *names)(lambda target: functools.partial(legalize, target))
        return legalize

    return register


def legalizations(target: Target) -> dict[str, Legalize]:
    """Return the legalisation of each operator that does not use TVM's own kernels."""
    return {record.name: record.kernel(target) for record in all_records() if record.kernel is not None}


def legalize_known(target: Target) -> Pass:
    """Make a pass that lowers every operator of known shape by our legalisation, and leaves others to TVM's own."""
    return relax.transform.LegalizeOps({name: _where_static(rule) for name, rule in legalizations(target).items()})


def _where_static(legalize: Legalize) -> Legalize:
    def legalize_or_leave(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        if all(map(is_static, (call, *call.args))):
            return legalize(builder, call)
        return call.op.get_attr("FLegalize")(builder, call)

    return legalize_or_leave


def call_kernel(builder: relax.BlockBuilder, kernel: Callable[..., Any], *args: Expr, **options: Any) -> relax.Call:
    """Emit a call of a kernel that is defined as a tensor expression."""
    return builder.call_te(kernel, *args, primfunc_name_hint=kernel.__name__, **options)


def product(
    builder: relax.BlockBuilder,
    kernel: Callable[..., Any],
    *args: Expr,
    pattern: int = OUT_ELEMENTWISE_FUSABLE,
    **options: Any,
) -> relax.Call:
    """Emit a kernel with a pattern of fusion; by default that of products. ``options`` are the kernel's."""
    attrs = {"op_pattern": pattern}
    return builder.call_te(kernel, *args, primfunc_name_hint=kernel.__name__, primfunc_attrs=attrs, **options)


def cropped_product(
    builder: relax.BlockBuilder, shape: Sequence[int], kernel: Callable[..., Any], *args: Expr, **options: Any
) -> relax.Call:
    """Crop a product that is computed larger than its result to ``shape``. Consumers fuse with the crop, because
    register tiles extend past the result."""
    whole = builder.emit(product(builder, kernel, *args, pattern=OPAQUE, **options))
    return call_kernel(builder, indexing.crop, whole, shape=shape)


def moved(builder: relax.BlockBuilder, kernel: Callable[..., Any], *args: Expr, **options: Any) -> relax.Call:
    """Emit a kernel that moves elements, marked ``INJECTIVE``."""
    return product(builder, kernel, *args, pattern=INJECTIVE, **options)


def parts_of_slices(target: Target, *operands: Expr) -> int:
    """Return how many parts of a sum over a batch occupy all cores if large operands come one sample after the other
    (:class:`relay_passes.SliceKernels`)."""
    is_large = not target.is_gpu and max(map(bytes_of, operands)) > target.traits.cached_bytes
    return target.traits.cores * shape_of(operands[0])[0] if is_large else 0
