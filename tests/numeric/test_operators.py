"""Every gradient rule against finite differences, in double precision: one row an operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax import op as R

from relay_passes import Backward
from relay_passes.gradients import supported_operators
from relay_passes.ir import bindings_of, op_name
from relay_passes.operators import random
from relay_passes.operators import training as pock
from relay_passes.operators.attention import attention as fused_attention
from relay_passes.operators.resampling import resampled

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """An operator applied to float64 tensors of some shapes, each of which gets a gradient."""

    name: str
    shapes: tuple[Shape, ...]
    apply: Callable[..., relax.Expr]
    positive: bool = False
    """Draw operands from [0.5, 2] instead of a normal distribution."""


def unary(name: str, operator: Callable[[relax.Expr], relax.Expr], positive: bool = False) -> Row:
    return Row(name, ((3, 7),), operator, positive)


def convolution(name: str, x: Shape, weight: Shape, **attributes) -> Row:
    def apply(data, kernel):
        return R.nn.conv2d(data, kernel, **attributes, data_layout="NHWC", kernel_layout="HWIO")

    return Row(name, (x, weight), apply)


def transposed_convolution(name: str, x: Shape, weight: Shape, **attributes) -> Row:
    return Row(name, (x, weight), lambda data, kernel: pock.conv2d_data_gradient(data, kernel, **attributes))


def pooling(name: str, operator: Callable[..., relax.Expr], x: Shape, **attributes) -> Row:
    return Row(name, (x,), lambda data: operator(data, **attributes, layout="NHWC", out_layout="NHWC"))


def product(name: str, a: Shape, b: Shape, transpose_a: bool = False, transpose_b: bool = False) -> Row:
    return Row(name, (a, b), lambda x, y: pock.matmul(x, y, transpose_a=transpose_a, transpose_b=transpose_b))


def attention(name: str, q: Shape, k: Shape, v: Shape, *masks: np.ndarray, causal: bool = False) -> Row:
    """The result of attention, which has statistics beside it."""

    def apply(*operands):
        constants = relax.Tuple([relax.const(mask, str(mask.dtype)) for mask in masks])
        call = fused_attention(*operands, constants, scale=0.5, masked=-1.5, causal=causal, safe=False)
        return relax.TupleGetItem(call, 0)

    return Row(name, (q, k, v), apply)


def integers(values: np.ndarray | list, dtype: str = "int64") -> relax.Expr:
    return relax.const(np.asarray(values), dtype)


MASK = np.arange(21).reshape(3, 7) % 3 == 0
FACTORS = np.array([[1.0, 0.0, 2.0], [3.0, -1.0, 0.5]])
FEW = np.array([[0.5, 0, 0, 2, 0], [0, 0, 0, 0, 0], [0, -1, 0.25, 0, 0.75]])
TARGETS = integers([2, 0, -100, 4])
ROWS = [
    # two operands, with and without broadcasting
    Row("add", ((3, 7), (3, 7)), R.add),
    Row("add broadcast", ((2, 1, 7), (3, 1)), R.add),
    Row("subtract", ((3, 7), (7,)), R.subtract),
    Row("multiply", ((2, 3, 1), (3, 7)), R.multiply),
    Row("divide", ((3, 7), (3, 1)), R.divide, positive=True),
    Row("power", ((3, 7), (7,)), R.power, positive=True),
    Row("power of 2", ((3, 7),), lambda x: R.power(x, relax.const(2.0, "float64"))),
    Row("power of -1.5", ((3, 7),), lambda x: R.power(x, relax.const(-1.5, "float64")), positive=True),
    Row("atan2", ((3, 7), (7,)), R.atan2),
    Row("maximum", ((3, 7), (7,)), R.maximum),
    Row("minimum", ((3, 7), (3, 1)), R.minimum),
    Row("where", ((3, 7), (1, 7)), lambda x, y: R.where(relax.const(MASK, "bool"), x, y)),
    # activations and other unary operators
    unary("relu", R.nn.relu),
    unary("clip", lambda x: R.clip(x, -0.5, 0.8)),
    unary("hardtanh", lambda x: pock.hardtanh(x, low=0.0, high=0.7)),
    unary("leakyrelu", lambda x: R.nn.leakyrelu(x, 0.1)),
    unary("gelu", R.nn.gelu),
    unary("gelu_tanh", R.nn.gelu_tanh),
    unary("silu", R.nn.silu),
    unary("selu", R.nn.selu),
    unary("elu", lambda x: pock.elu(x, alpha=0.7, scale=1.3, input_scale=0.5)),
    unary("elu, negative", lambda x: pock.elu(x, alpha=-0.7, scale=1.3, input_scale=0.5)),
    unary("expm1", pock.expm1),
    unary("log1p", pock.log1p, positive=True),
    unary("lgamma", pock.lgamma),
    unary("square root", lambda x: pock.root(x, degree=2.0), positive=True),
    unary("cube root", lambda x: pock.root(x, degree=3.0), positive=True),
    unary("safe_softmax", pock.safe_softmax),
    unary("softplus", lambda x: R.nn.softplus(x, 2.0, 3.0)),
    Row("prelu", ((2, 3, 7), (7,)), lambda x, a: R.nn.prelu(x, a, 2)),
    Row("prelu, inner axis", ((2, 3, 7), (3,)), lambda x, a: R.nn.prelu(x, a, 1)),
    unary("negative", R.negative),
    unary("abs", R.abs),
    unary("exp", R.exp),
    unary("log", R.log, positive=True),
    unary("sqrt", R.sqrt, positive=True),
    unary("rsqrt", R.rsqrt, positive=True),
    unary("square", R.square),
    unary("sin", R.sin),
    unary("cos", R.cos),
    unary("tanh", R.tanh),
    unary("tan", R.tan, positive=True),
    unary("sinh", R.sinh),
    unary("cosh", R.cosh),
    unary("asin", lambda x: R.asin(R.tanh(x))),
    unary("acos", lambda x: R.acos(R.tanh(x))),
    unary("atan", R.atan),
    unary("asinh", R.asinh),
    unary("acosh", lambda x: R.acosh(x + relax.const(1.0, "float64")), positive=True),
    unary("atanh", lambda x: R.atanh(R.sigmoid(x))),
    unary("sigmoid", R.sigmoid),
    unary("erf", R.erf),
    # weighted sums along an axis
    Row("resample", ((2, 5, 3),), lambda x: resampled(x, FEW, 1)),
    Row("resample, many terms", ((12, 2),), lambda x: resampled(x, np.linspace(-1, 1, 36).reshape(3, 12), 0)),
    Row("take, known indices", ((2, 5, 3),), lambda x: R.take(x, integers([[4, 0], [1, 4], [2, 1]]), 1)),
    # products
    attention("attention", (2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 3)),
    attention("attention, keys broadcast, mask", (2, 3, 4), (2, 7, 4), (1, 7, 3), MASK),
    attention("attention, causal", (2, 5, 4), (2, 7, 4), (2, 7, 3), causal=True),
    attention("attention, added mask", (3, 4), (7, 4), (7, 3), np.linspace(-1, 1, 14).reshape(2, 1, 7)),
    product("matmul NN", (5, 3), (3, 7)),
    product("matmul NT", (5, 3), (7, 3), transpose_b=True),
    product("matmul TN", (3, 5), (3, 7), transpose_a=True),
    product("matmul TT", (3, 5), (7, 3), transpose_a=True, transpose_b=True),
    product("matmul, rows of a batch by one matrix", (2, 3, 5), (5, 7)),
    product("matmul, batch by batch", (2, 3, 5), (2, 5, 7)),
    product("matmul, broadcast batches", (2, 1, 3, 5), (4, 7, 5), transpose_b=True),
    Row("relax.matmul", ((2, 3, 5), (5, 7)), R.matmul),
    product("matmul, transposed batch by one matrix", (2, 5, 3), (5, 7), transpose_a=True),
    # convolutions
    convolution("conv 1x1", (2, 5, 4, 3), (1, 1, 3, 7)),
    convolution("conv 3x3", (1, 6, 5, 3), (3, 3, 3, 4), padding=1),
    convolution("conv, stride 2, odd size", (2, 7, 9, 3), (3, 3, 3, 4), strides=2, padding=1),
    convolution("conv, stride 2, even size", (1, 8, 6, 3), (3, 3, 3, 4), strides=2, padding=1),
    convolution("conv, stride 3, kernel 2", (1, 9, 8, 1), (2, 2, 1, 3), strides=3),
    convolution("conv, asymmetric", (1, 7, 8, 3), (3, 2, 3, 4), strides=(2, 1), padding=(0, 1, 1, 0)),
    convolution("conv, dilation", (1, 9, 9, 2), (3, 3, 2, 3), padding=2, dilation=2),
    convolution("conv, stride and dilation", (1, 11, 10, 2), (3, 3, 2, 3), strides=2, padding=2, dilation=(2, 3)),
    convolution("conv, groups", (1, 5, 5, 6), (3, 3, 2, 9), padding=1, groups=3),
    convolution("conv, depthwise", (2, 7, 7, 5), (3, 3, 1, 5), strides=2, padding=1, groups=5),
    convolution("conv, depthwise 5x5", (1, 6, 7, 3), (5, 5, 1, 3), padding=2, groups=3),
    convolution("conv, depthwise with multiplier", (1, 5, 5, 3), (3, 3, 1, 6), padding=1, groups=3),
    transposed_convolution(
        "conv transposed",
        (1, 4, 5, 3),
        (3, 3, 2, 3),
        strides=[2, 2],
        padding=[1, 1, 1, 1],
        dilation=[1, 1],
        groups=1,
        size=[8, 9],
    ),
    transposed_convolution(
        "conv transposed, groups",
        (1, 4, 4, 4),
        (2, 2, 3, 4),
        strides=[2, 2],
        padding=[0, 0, 0, 0],
        dilation=[1, 1],
        groups=2,
        size=[8, 8],
    ),
    # pooling
    pooling("max_pool2d", R.nn.max_pool2d, (2, 6, 8, 3), pool_size=2, strides=2),
    pooling("max_pool2d, overlapping", R.nn.max_pool2d, (1, 7, 9, 3), pool_size=3, strides=2, padding=1),
    pooling("max_pool2d, ceil", R.nn.max_pool2d, (1, 6, 6, 2), pool_size=3, strides=2, ceil_mode=True),
    pooling("max_pool2d, dilation", R.nn.max_pool2d, (1, 8, 8, 2), pool_size=2, strides=1, dilation=2),
    pooling("avg_pool2d", R.nn.avg_pool2d, (2, 6, 8, 3), pool_size=2, strides=2),
    pooling("avg_pool2d, padding", R.nn.avg_pool2d, (1, 7, 9, 3), pool_size=3, strides=2, padding=1),
    pooling(
        "avg_pool2d, padding counts",
        R.nn.avg_pool2d,
        (1, 7, 9, 3),
        pool_size=3,
        strides=2,
        padding=1,
        count_include_pad=True,
    ),
    # normalisation and softmax
    Row("normalize", ((4, 7),), lambda x: pock.normalize(x, axes=[1], epsilon=1e-5, center=True)),
    Row("normalize, two axes", ((2, 3, 5),), lambda x: pock.normalize(x, axes=[1, 2], epsilon=1e-5, center=True)),
    Row("normalize, outer axes", ((3, 4, 5),), lambda x: pock.normalize(x, axes=[0, 1], epsilon=1e-5, center=True)),
    Row("normalize by root mean square", ((4, 7),), lambda x: pock.normalize(x, axes=[1], epsilon=1e-5, center=False)),
    unary("softmax", R.nn.softmax),
    Row("softmax, inner axis", ((2, 3, 4),), lambda x: R.nn.softmax(x, axis=1)),
    unary("log_softmax", R.nn.log_softmax),
    # loss
    Row("cross_entropy", ((4, 5),), lambda x: pock.cross_entropy(x, TARGETS, ignore_index=-100, label_smoothing=0.0)),
    Row("cross_entropy_with_logits", ((4, 5), (4, 5)), R.nn.cross_entropy_with_logits),
    Row("cross_entropy_with_logits, vector", ((5,), (5,)), R.nn.cross_entropy_with_logits),
    *(
        Row(f"nll_loss, {how}", ((4, 5),), lambda x, how=how: R.nn.nll_loss(x, TARGETS, relax.const([0.5, 1, 2, 3, 0.1], "float64"), how, -100))
        for how in ("none", "sum", "mean")
    ),
    Row("nll_loss of images", ((2, 3, 4),), lambda x: R.nn.nll_loss(x, integers([[0, 2, 1, 1], [2, 2, 0, 1]]), reduction="mean", ignore_index=1)),
    Row("einsum", ((3, 4), (4, 5), (5,)), lambda a, b, c: R.einsum((a, b, c), "ij,jk,k->ki")),
    Row("einsum, summed alone", ((3, 4), (3, 5)), lambda a, b: R.einsum((a, b), "ij,ik->k")),
    Row("einsum to a number", ((3, 4), (4, 3)), lambda a, b: R.reshape(R.einsum((a, b), "ij,ji->"), (1,))),
    Row("cross_entropy, smooth", ((4, 5),), lambda x: pock.cross_entropy(x, TARGETS, ignore_index=-100, label_smoothing=0.2)),
    # reductions
    Row("sum", ((2, 3, 4),), lambda x: R.sum(x, axis=[0, 2])),
    Row("sum, kept", ((2, 3, 4),), lambda x: R.sum(x, axis=[1], keepdims=True)),
    Row("sum of all", ((2, 3, 4),), R.sum),
    Row("mean", ((2, 3, 4),), lambda x: R.mean(x, axis=[-1])),
    Row("max", ((3, 7),), lambda x: R.max(x, axis=[1])),
    Row("min", ((3, 7),), lambda x: R.min(x, axis=[0], keepdims=True)),
    Row("variance", ((3, 7),), lambda x: R.variance(x, axis=[1])),
    Row("std", ((3, 7),), lambda x: R.std(x, axis=[0], keepdims=True)),
    Row("prod", ((2, 3, 4),), lambda x: R.prod(x, axis=[0, 2])),
    Row("prod of all, with a zero", ((2, 3),), lambda x: R.prod(x * relax.const(FACTORS, "float64"))),
    Row("cumsum", ((3, 7),), lambda x: R.cumsum(x, axis=1)),
    Row("cumprod", ((2, 3, 5),), lambda x: R.cumprod(x, axis=1)),
    Row("cumprod, with zeros", ((2, 3),), lambda x: R.cumprod(x * relax.const(FACTORS, "float64"), axis=1)),
    # movement
    Row("reshape", ((2, 6),), lambda x: R.reshape(x, (3, 4))),
    Row("flatten", ((2, 3, 2),), R.flatten),
    Row("expand_dims", ((2, 3),), lambda x: R.expand_dims(x, [0, 2])),
    Row("squeeze", ((2, 1, 3),), lambda x: R.squeeze(x, [1])),
    Row("permute_dims", ((2, 3, 4),), lambda x: R.permute_dims(x, [1, 2, 0])),
    Row("permute_dims, reversed", ((2, 3, 4),), R.permute_dims),
    Row("broadcast_to", ((3, 1),), lambda x: R.broadcast_to(x, (2, 3, 4))),
    Row("concat", ((2, 3), (2, 1), (2, 4)), lambda *parts: R.concat(list(parts), axis=1)),
    Row("stack", ((2, 3), (2, 3)), lambda *parts: R.stack(list(parts), axis=1)),
    Row("split", ((2, 7),), lambda x: R.split(x, [2, 5], axis=1)[1]),
    Row("strided_slice", ((5, 7),), lambda x: R.strided_slice(x, [0, 1], [1, 0], [4, 7], [1, 2])),
    Row("strided_slice, stride 3", ((8,),), lambda x: R.strided_slice(x, [0], [1], [8], [3])),
    Row("strided_slice from the end", ((5, 7),), lambda x: R.strided_slice(x, [1], [-3], [7])),
    Row("pad", ((2, 3),), lambda x: R.nn.pad(x, [0, 1, 2, 0])),
    Row("flip", ((2, 3),), lambda x: R.flip(x, 1)),
    Row("tile", ((2, 3),), lambda x: R.tile(x, (2, 1, 3))),
    Row("repeat", ((2, 3),), lambda x: R.repeat(x, 2, 1)),
    Row("repeat, flattened", ((2, 3),), lambda x: R.repeat(x, 2)),
    Row("tril", ((4, 4),), lambda x: R.tril(x, 0)),
    Row("triu", ((4, 4),), lambda x: R.triu(x, 1)),
    Row("astype", ((2, 3),), lambda x: R.astype(R.astype(x, "float64"), "float64")),
    Row("drop", ((3, 7),), lambda x: random.drop(x, relax.const(MASK), scale=1.5, shift=0.3, other=-2.0, expected=1.0)),
    # indexing
    Row("take, rows", ((5, 3),), lambda x: R.take(x, integers([4, 0, 4, 2]), axis=0)),
    Row("take, a matrix of indices", ((5, 3),), lambda x: R.take(x, integers([[1, 0], [4, 1]]), axis=0)),
    Row("take, columns", ((2, 5, 3),), lambda x: R.take(x, integers([2, 2, 0]), axis=1)),
    Row("gather_elements", ((3, 4),), lambda x: R.gather_elements(x, integers([[0, 3], [1, 1], [2, 0]]), axis=1)),
    Row("scatter_elements", ((3, 4), (3, 2)), lambda x, u: R.scatter_elements(x, integers([[0, 3], [1, 0], [2, 3]]), u, axis=1)),
    Row("scatter_elements, adding", ((3, 4), (2, 4)), lambda x, u: R.scatter_elements(x, integers([[0, 2, 1, 1], [0, 2, 0, 1]]), u, axis=0, reduction="add")),
    *(
        Row(f"scatter_rows, {how}", ((5, 3), (4, 3)), lambda x, u, how=how: pock.scatter_rows(x, integers([4, 0, 1 if how == "write" else 4, 2]), u, combine=how))
        for how in ("write", "add", "max", "min", "multiply")
    ),
    Row("scatter_rows, products with zeros", ((3, 5), (3, 5)), lambda x, u: pock.scatter_rows(x * relax.const(FEW[::-1].copy(), "float64"), integers([1, 0, 1]), u * relax.const(FEW, "float64"), combine="multiply")),
    Row("index_tensor, one index", ((5, 3),), lambda x: R.index_tensor(x, [integers([[1, 1], [4, 0]])])),
    Row("index_tensor, two indices", ((5, 3),), lambda x: R.index_tensor(x, [integers([1, 4, 1]), integers([2, 0, 2])])),
    Row(
        "index_tensor, two of three axes, broadcast",
        ((5, 3, 7),),
        lambda x: R.index_tensor(x, [integers([[1], [4]]), integers([2, 0, 2])]),
    ),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_gradient_equals_finite_differences(row: Row) -> None:
    rng = np.random.default_rng(sum(map(ord, row.name)))
    values = [rng.uniform(0.5, 2, shape) if row.positive else rng.standard_normal(shape) for shape in row.shapes]
    forward = projected(row, rng)
    backward = Backward({f"x{index}": None for index in range(len(values))})(forward)
    assert list(backward["main"].attrs["gradients"]) == [f"x{index}" for index in range(len(values))]
    loss, step = compiled(forward), compiled(backward)
    _, *grads = step(*values)
    size = 1e-6
    for index, grad in enumerate(grads):
        direction = rng.standard_normal(row.shapes[index])
        ahead, behind = (
            loss(*values[:index], values[index] + sign * size * direction, *values[index + 1 :]) for sign in (1, -1)
        )
        numeric = (ahead - behind) / (2 * size)
        np.testing.assert_allclose(np.sum(grad * direction), numeric, rtol=1e-6, atol=1e-8)


def test_every_rule_has_a_row() -> None:
    tested = {
        name
        for row in ROWS
        for name in (
            op_name(binding.value) for binding in bindings_of(projected(row, np.random.default_rng(0))["main"])
        )
    }
    assert set(supported_operators()) <= tested


def projected(row: Row, rng: np.random.Generator) -> tvm.IRModule:
    """The sum of the operator's result, weighted at random so that no symmetry hides an error."""
    params = [relax.Var(f"x{index}", relax.TensorType(shape, "float64")) for index, shape in enumerate(row.shapes)]
    builder = relax.BlockBuilder()
    with builder.function("main", params):
        with builder.dataflow():
            result = builder.emit(row.apply(*params))
            weights = relax.const(rng.standard_normal([int(extent) for extent in result.ty.shape]), "float64")
            output = builder.emit_output(R.sum(builder.emit(result * weights)))
        builder.emit_func_output(output)
    return builder.get()


def compiled(mod: tvm.IRModule) -> Callable[..., np.ndarray | list[np.ndarray]]:
    """The function of a module, on NumPy arrays."""
    machine = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())

    def call(*arrays: np.ndarray) -> np.ndarray | list[np.ndarray]:
        result = machine["main"](*(tvm.runtime.tensor(array) for array in arrays))
        return result.numpy() if isinstance(result, tvm.runtime.Tensor) else [part.numpy() for part in result]

    return call
