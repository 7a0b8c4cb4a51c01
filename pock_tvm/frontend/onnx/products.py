"""Products: matrices, convolutions, transposed convolutions, and sums over named axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm.relax import op as R

from relay_passes.ir import Expr, dtype_of, scalar, shape_of

from .registry import Node, converter, refuse
from .windows import spatial, window_of


@converter("MatMul")
def matmul(node: Node, a: Expr, b: Expr) -> Expr:
    """Multiply matrices; leading axes broadcast."""
    _check_type(a)
    return R.matmul(a, b)


@converter("Gemm")
def gemm(
    node: Node,
    a: Expr,
    b: Expr,
    c: Expr | None = None,
    *,
    alpha: float,
    beta: float,
    transA: int,  # noqa: N803
    transB: int,  # noqa: N803
    broadcast: int = 1,
) -> Expr:
    """``alpha * A B + beta * C``."""
    _check_type(a)
    y = node.emit(R.matmul(R.permute_dims(a) if transA else a, R.permute_dims(b) if transB else b))
    y = y if alpha == 1 else node.emit(R.multiply(scalar(alpha, y), y))
    if c is None or beta == 0:
        return y
    return R.add(y, c if beta == 1 else R.multiply(scalar(beta, c), c))


@converter("Conv")
def conv(
    node: Node,
    x: Expr,
    w: Expr,
    b: Expr | None = None,
    *,
    auto_pad: str,
    dilations: Sequence[int] | None = None,
    group: int,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Expr:
    """Convolve over one to three spatial axes."""
    _check_type(x)
    kernel = spatial(w)
    refuse(kernel_shape and tuple(kernel_shape) != kernel, f"its attribute 'kernel_shape' is not W's, {kernel}")
    operators = {1: R.nn.conv1d, 2: R.nn.conv2d, 3: R.nn.conv3d}
    refuse(len(kernel) not in operators, f"it has {len(kernel)} spatial axes; one to three are supported")
    window = window_of(spatial(x), kernel, strides, dilations, pads, auto_pad)
    y = operators[len(kernel)](
        x,
        w,
        strides=window.strides,
        padding=[*window.before, *window.declared],
        dilation=window.dilations,
        groups=group,
    )
    return _with_bias(node, node.emit(y), b)


@converter("ConvTranspose")
def conv_transpose(
    node: Node,
    x: Expr,
    w: Expr,
    b: Expr | None = None,
    *,
    auto_pad: str,
    dilations: Sequence[int] | None = None,
    group: int,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Expr:
    """Convert a transposed convolution (a convolution's data gradient) over one or two spatial axes."""
    _check_type(x)
    kernel = spatial(w)
    rank = len(kernel)
    refuse(kernel_shape and tuple(kernel_shape) != kernel, f"its attribute 'kernel_shape' is not W's, {kernel}")
    refuse(rank not in (1, 2), f"it has {rank} spatial axes; one or two are supported")
    refuse(output_shape, "its attribute 'output_shape' is not supported; give 'pads' and 'output_padding' instead")
    refuse(auto_pad not in ("NOTSET", "VALID"), f"its attribute 'auto_pad' is '{auto_pad}'; give 'pads' instead")
    strides, dilations = list(strides or [1] * rank), list(dilations or [1] * rank)
    extra = list(output_padding or [0] * rank)
    pads = [0] * (2 * rank) if auto_pad == "VALID" or not pads else list(pads)
    if rank == 1:  # as images of height 1
        x, w = node.emit(R.expand_dims(x, 2)), node.emit(R.expand_dims(w, 2))
        strides, dilations, extra, pads = [1, *strides], [1, *dilations], [0, *extra], [0, pads[0], 0, pads[1]]
    operator = R.nn.conv2d_transpose
    y = node.emit(
        operator(
            x,
            w,
            strides=strides,
            padding=pads,
            output_padding=extra,
            dilation=dilations,
            groups=group,
            data_layout="NCHW",
            kernel_layout="IOHW",
        )  # fmt: skip
    )
    return _with_bias(node, node.emit(R.squeeze(y, [2])) if rank == 1 else y, b)


def _check_type(x: Expr) -> None:
    """Refuse half precision, whose sums differ between machines, and integers, which belong to quantised networks."""
    refuse(dtype_of(x) not in ("float32", "float64"), f"it multiplies {dtype_of(x)}; export the model in float32")


def _with_bias(node: Node, y: Expr, b: Expr | None) -> Expr:
    if b is None:
        return y
    return R.add(y, node.emit(R.reshape(b, (1, -1, *[1] * (len(shape_of(y)) - 2)))))


@converter("Einsum")
def einsum(node: Node, *operands: Expr, equation: str) -> Expr:
    """Convert an einsum of one or two operands: permute, multiply as matrices, permute."""
    terms, _, result = equation.replace(" ", "").partition("->")
    names = terms.split(",")
    refuse("->" not in equation or "." in equation or len(names) > 2, f"its equation '{equation}' is not supported")
    refuse(any(len(set(term)) < len(term) for term in names), f"its equation '{equation}' takes a diagonal")
    _check_type(operands[0])
    extents: dict[str, int] = {}
    for term, x in zip(names, operands, strict=True):
        extents.update(zip(term, shape_of(x), strict=True))
    summed = []
    for position, (term, x) in enumerate(zip(names, operands, strict=True)):
        elsewhere = set(result).union(*(other for index, other in enumerate(names) if index != position))
        alone = [at for at, axis in enumerate(term) if axis not in elsewhere]
        names[position] = "".join(axis for axis in term if axis in elsewhere)
        summed.append(node.emit(R.sum(x, alone)) if alone else x)
    if len(summed) == 1:
        return _in_order(node, summed[0], names[0], result)
    left, right = names
    batch = [axis for axis in left if axis in right and axis in result]
    common = [axis for axis in left if axis in right and axis not in result]
    rows, columns = ([axis for axis in term if axis not in other] for term, other in ((left, right), (right, left)))

    def product(axes: Sequence[str]) -> int:
        return math.prod(extents[axis] for axis in axes)

    heads = [extents[axis] for axis in batch]
    a = _in_order(node, summed[0], left, [*batch, *rows, *common])
    b = _in_order(node, summed[1], right, [*batch, *common, *columns])
    a = node.emit(R.reshape(a, (*heads, product(rows), product(common))))
    b = node.emit(R.reshape(b, (*heads, product(common), product(columns))))
    made = [*batch, *rows, *columns]
    y = node.emit(R.reshape(node.emit(R.matmul(a, b)), [extents[axis] for axis in made]))
    return _in_order(node, y, made, result)


def _in_order(node: Node, x: Expr, names: Sequence[str], order: Sequence[str]) -> Expr:
    """Permute the named axes of ``x``."""
    if list(names) == list(order):
        return x
    return node.emit(R.permute_dims(x, [list(names).index(axis) for axis in order]))
