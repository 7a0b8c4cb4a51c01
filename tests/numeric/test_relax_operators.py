"""Relax's own operators, after the canonical passes: their gradients against those of TVM, and of finite differences.

A row is an operator, applied to parameters of some shapes. All rows of a table are one function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.relax import op as R

from relay_passes import Backward
from relay_passes.canonical.canonicalise import move_channels_last, unify_operators
from tests.relay_passes.modules import function, operators, run

M, IMAGE = (4, 5), (2, 3, 6, 6)
LABELS = relax.const(np.array([2, 0, 4, 1]), "int64")
CHOSEN = relax.const(np.arange(20).reshape(4, 5) % 3 == 0)
HEADS = (2, 5, 3, 4)


@dataclass(frozen=True)
class Row:
    """An operator on parameters of some shapes, drawn from [0.5, 2]."""

    shapes: tuple[tuple[int, ...], ...]
    apply: Callable[..., relax.Expr]


def one(apply: Callable[..., relax.Expr]) -> Row:
    return Row((M,), apply)


def two(apply: Callable[..., relax.Expr]) -> Row:
    return Row((M, (5,)), apply)


def chosen(compare: Callable[..., relax.Expr]) -> Row:
    return Row((M, M), lambda x, y: R.where(compare(x, y), R.multiply(x, x), y))


KNOWN_TO_TVM: dict[str, Row] = {
    "add": two(R.add),
    "subtract": two(R.subtract),
    "multiply": two(R.multiply),
    "divide": two(R.divide),
    "power": two(R.power),
    "maximum": two(R.maximum),
    "minimum": two(R.minimum),
    "equal": chosen(R.equal),
    "greater": chosen(R.greater),
    "greater_equal": chosen(R.greater_equal),
    "less": chosen(R.less),
    "less_equal": chosen(R.less_equal),
    "not_equal": chosen(R.not_equal),
    "zeros_like": one(lambda x: R.add(R.zeros_like(x), x)),
    "ones_like": one(lambda x: R.add(R.ones_like(x), x)),
    "full_like": one(lambda x: R.add(R.full_like(x, relax.const(2.0)), x)),
    "zeros": one(lambda x: R.add(R.zeros(M, "float32"), x)),
    "ones": one(lambda x: R.multiply(R.ones(M, "float32"), x)),
    "full": one(lambda x: R.multiply(R.full(M, relax.const(3.0)), x)),
    "abs": one(lambda x: R.abs(R.subtract(x, relax.const(1.2)))),
    "cos": one(R.cos),
    "exp": one(R.exp),
    "log": one(R.log),
    "negative": one(R.negative),
    "sigmoid": one(R.sigmoid),
    "sin": one(R.sin),
    "sqrt": one(R.sqrt),
    "tanh": one(R.tanh),
    "sum": one(lambda x: R.sum(x, axis=[0])),
    "mean": one(lambda x: R.mean(x, axis=[1], keepdims=True)),
    "variance": one(lambda x: R.variance(x, axis=[1])),
    "permute_dims": one(lambda x: R.permute_dims(x, [1, 0])),
    "concat": two(lambda x, y: R.concat([x, R.reshape(y, (1, 5))], axis=0)),
    "split": one(lambda x: R.split(x, [2, 3], axis=1)[0]),
    "expand_dims": one(lambda x: R.expand_dims(x, 1)),
    "reshape": one(lambda x: R.reshape(x, (2, 10))),
    "cumsum": one(lambda x: R.cumsum(x, 1)),
    "broadcast_to": Row(((4, 1),), lambda x: R.broadcast_to(x, M)),
    "take": one(lambda x: R.take(x, LABELS, 1)),
    "where": Row((M, M), lambda x, y: R.where(CHOSEN, x, y)),
    "matmul": Row((M, (5, 3)), R.matmul),
    "matmul by a vector": two(R.matmul),
    "astype": one(lambda x: R.astype(R.astype(x, "float64"), "float32")),
    "nn.relu": one(lambda x: R.nn.relu(R.subtract(x, relax.const(1.2)))),
    "nn.silu": one(R.nn.silu),
    "nn.softmax": one(lambda x: R.nn.softmax(x, 0)),
    "nn.log_softmax": one(R.nn.log_softmax),
    "nn.cross_entropy_with_logits": Row((M, M), R.nn.cross_entropy_with_logits),
    "nn.nll_loss": Row((M,), lambda x: R.nn.nll_loss(x, LABELS, relax.const(np.arange(5, dtype="float32")))),
    "nn.conv2d": Row((IMAGE, (4, 3, 3, 3)), lambda x, w: R.nn.conv2d(x, w, strides=2, padding=1)),
    "nn.max_pool2d": Row((IMAGE,), lambda x: R.nn.max_pool2d(x, (2, 2), (2, 2))),
    "nn.avg_pool2d": Row((IMAGE,), lambda x: R.nn.avg_pool2d(x, (3, 3), (2, 2), (1, 1))),
}
OTHERS: dict[str, Row] = {
    "triu": one(lambda x: R.triu(x, 1)),  # TVM's own rule fails, for want of a gradient of k
    "attention": Row((HEADS, (2, 7, 3, 4), (2, 7, 3, 2)), R.nn.attention),
    "attention, scale": Row((HEADS, HEADS, HEADS), lambda q, k, v: R.nn.attention(q, k, v, scale=0.3)),
    "attention, bias": Row((HEADS, HEADS, HEADS, (2, 3, 5, 5)), lambda q, k, v, b: R.nn.attention(q, k, v, b)),
    "attention, causal": Row((HEADS, HEADS, HEADS), lambda q, k, v: R.nn.attention(q, k, v, causal_mask="TopLeft")),
    "attention, causal from the end": Row(
        (HEADS, (2, 7, 3, 4), (2, 7, 3, 2)), lambda q, k, v: R.nn.attention(q, k, v, causal_mask="BottomRight")
    ),
    "einsum": Row((M, (5, 3)), lambda x, y: R.einsum((x, y), "ij,jk->ki")),
    "prod": one(lambda x: R.prod(x, axis=[1])),
    "scatter_elements": Row((M, (4, 1)), lambda x, u: R.scatter_elements(x, R.reshape(LABELS, (4, 1)), u, axis=1)),
    "atan": one(R.atan),
    "sinh": one(R.sinh),
}


def losses(rows: dict[str, Row]) -> tuple[tvm.IRModule, list[np.ndarray]]:
    """A function of the parameters of all rows: the sum of their results, weighted at random. And such parameters."""
    rng = np.random.default_rng(0)
    shapes = {f"{name}:{at}": shape for name, row in rows.items() for at, shape in enumerate(row.shapes)}

    def body(emit: Callable[..., relax.Var], *params: relax.Var) -> relax.Var:
        given, total = iter(params), None
        for row in rows.values():
            result = emit(row.apply(*(next(given) for _ in row.shapes)))
            weights = rng.standard_normal([int(extent) for extent in result.ty.shape])
            own = emit(R.sum(emit(R.multiply(result, relax.const(weights.astype("float32"))))))
            total = own if total is None else emit(R.add(total, own))
        return total

    return function(shapes, body), [rng.uniform(0.5, 2, shape).astype("float32") for shape in shapes.values()]


def gradients(mod: tvm.IRModule) -> tuple[list[str], tvm.IRModule]:
    """The parameters of a function and its loss with its gradients, by the canonical passes and ours."""
    names = [param.name for param in mod["main"].params]
    canonical = tvm.transform.Sequential([*unify_operators(), *move_channels_last()])(mod)
    return names, Backward(dict.fromkeys(names))(canonical)


def test_gradients_are_those_of_tvm() -> None:
    mod, arrays = losses(KNOWN_TO_TVM)
    names, ours = gradients(mod)
    results = run(ours, *arrays)
    whole = relax.transform.Gradient("main")(mod)
    wanted = tvm.compile(whole, "llvm")
    loss, tvms = relax.VirtualMachine(wanted, tvm.cpu())["main_adjoint"](*map(tvm.runtime.tensor, arrays))
    np.testing.assert_allclose(results[0], loss.numpy(), rtol=1e-4)
    for name, actual, expected in zip(names, results[1:], tvms, strict=True):
        np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-3, atol=1e-5, err_msg=name)


def test_every_operator_that_tvm_differentiates_has_a_row() -> None:
    known = {
        name
        for name in tvm.ir.Op.list_op_names()
        if name.startswith("relax.") and tvm.ir.Op.get(name).get_attr("FPrimalGradient") is not None
    }
    assert len(known) >= 52
    assert known <= set(operators(losses(KNOWN_TO_TVM | OTHERS)[0]))


def test_further_gradients_are_differences_of_the_loss() -> None:
    """Along one direction a parameter, of the loss as TVM computes it."""
    mod, arrays = losses(OTHERS)
    names, ours = gradients(mod)
    _, *grads = run(ours, *arrays)
    machine = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())
    rng, size = np.random.default_rng(1), 1e-2

    def loss(place: int, step: np.ndarray) -> float:
        moved = [array + step if at == place else array for at, array in enumerate(arrays)]
        return float(machine["main"](*map(tvm.runtime.tensor, moved)).numpy())

    for place, (name, grad) in enumerate(zip(names, grads, strict=True)):
        step = (size * rng.choice([-1, 1], arrays[place].shape)).astype("float32")
        numeric = (loss(place, step) - loss(place, -step)) / 2
        np.testing.assert_allclose(np.sum(grad * step), numeric, rtol=2e-2, atol=2e-4, err_msg=name)
