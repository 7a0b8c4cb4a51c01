"""Families of operators that several passes treat alike."""

RESHAPES = frozenset({"relax.reshape", "relax.flatten", "relax.expand_dims", "relax.squeeze"})
"""What gives the same elements in the same order in another shape."""

ELEMENTWISE = frozenset(
    f"relax.{name}"
    for name in [
        "abs",
        "acos",
        "acosh",
        "add",
        "asin",
        "asinh",
        "atan",
        "atanh",
        "astype",
        "bitwise_and",
        "bitwise_or",
        "ceil",
        "clip",
        "cos",
        "cosh",
        "divide",
        "equal",
        "erf",
        "exp",
        "floor",
        "floor_divide",
        "floor_mod",
        "greater",
        "greater_equal",
        "isfinite",
        "isinf",
        "isnan",
        "less",
        "less_equal",
        "log",
        "logical_and",
        "logical_not",
        "logical_or",
        "maximum",
        "minimum",
        "mod",
        "multiply",
        "negative",
        "not_equal",
        "power",
        "round",
        "rsqrt",
        "sigmoid",
        "sign",
        "sin",
        "sinh",
        "sqrt",
        "square",
        "subtract",
        "tan",
        "tanh",
        "trunc",
        "where",
        "nn.dropout",
        "nn.gelu",
        "nn.gelu_tanh",
        "nn.leakyrelu",
        "nn.relu",
        "nn.selu",
        "nn.silu",
        "nn.softplus",
        "grad.no_grad",
        "zeros_like",
        "ones_like",
    ]
) | {f"pock.{name}" for name in ("hardtanh", "elu", "expm1", "log1p", "root")}
"""What computes each element of its result from the same element of its operands; operands may broadcast."""

BATCHED = frozenset(
    f"relax.{name}"
    for name in [
        *(f"nn.conv{rank}d" for rank in (1, 2, 3)),
        *(f"nn.conv{rank}d_transpose" for rank in (1, 2, 3)),
        *(f"nn.{kind}_pool{rank}d" for kind in ("max", "avg", "adaptive_avg") for rank in (1, 2, 3)),
        "image.resize2d",
        "image.resize3d",
    ]
) | {"pock.max_pool2d_argmax"}
"""What treats the images of its first operand apart, whatever else it reads."""

REDUCTIONS = frozenset(f"relax.{name}" for name in ("sum", "mean", "max", "min", "prod", "variance", "std"))
"""What gives one number for all positions along some axes."""
