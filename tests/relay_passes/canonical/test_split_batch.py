"""A network of a part of its batch gives those samples' results, and what mixes samples is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm import relax
from tvm.relax import op as R

from relay_passes import AppendLoss, SplitBatch
from relay_passes.canonical.split_batch import CUT
from relay_passes.errors import BatchError
from relay_passes.ir import shape_of
from relay_passes.operators.training import matmul
from tests.relay_passes.modules import function, run

BATCH = 6
Body = Callable[..., Any]
NETWORKS: dict[str, tuple[dict[str, tuple[int, ...]], Body]] = {
    "elements": ({"x": (BATCH, 5), "b": (5,)}, lambda emit, x, b: emit(R.nn.relu(emit(x + b)))),
    "a parameter with as many rows": (
        {"x": (BATCH, 2, 5), "b": (BATCH, 5, 5)},
        lambda emit, x, b: emit(_product(x, emit(R.mean(b, [0])))),
    ),
    "rows behind one another": (
        {"x": (BATCH, 4, 3), "w": (3, 2)},
        lambda emit, x, w: emit(R.reshape(emit(_product(emit(R.reshape(x, (BATCH * 4, 3))), w)), (BATCH, 8))),
    ),
    "a row for each sample": (
        {"x": (BATCH, 4, 3), "token": (1, 1, 3)},
        lambda emit, x, token: emit(R.concat([emit(R.broadcast_to(token, (BATCH, 1, 3))), x], axis=1)),
    ),
    "rows of the same table": (
        {"x": (BATCH, 4, 3), "table": (7, 3)},
        lambda emit, x, table: emit(x + _looked_up(emit, table)),
    ),
    "numbers": (
        {"x": (BATCH, 4)},
        lambda emit, x: emit(x * emit(R.full((BATCH, 4), relax.const(3.0), "float32"))),
    ),
    "more heads": (
        {"x": (BATCH, 2, 1, 3)},
        lambda emit, x: emit(R.reshape(emit(R.broadcast_to(x, (BATCH, 2, 4, 3))), (BATCH, 24))),
    ),
    "the batch inside": (
        {"x": (BATCH, 4, 3)},
        lambda emit, x: emit(R.permute_dims(emit(R.exp(emit(R.permute_dims(x, [1, 2, 0])))), [2, 0, 1])),
    ),
}


def _product(a: Any, b: Any) -> Any:
    return matmul(a, b, transpose_a=False, transpose_b=False)


def _looked_up(emit: Callable[..., Any], table: Any) -> Any:
    numbers = emit(R.broadcast_to(relax.const(np.array([2, 0, 6, 2]), "int64"), (BATCH, 4)))
    rows = emit(R.take(table, emit(R.reshape(numbers, (BATCH * 4,))), axis=0))
    return emit(R.reshape(rows, (BATCH, 4, 3)))


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_part_of_the_batch_gives_its_part_of_the_results(name: str, count: int) -> None:
    params, body = NETWORKS[name]
    mod = function(params, body)
    part = SplitBatch(count)(mod)
    assert list(part["main"].attrs[CUT]) == ["x"]
    assert shape_of(part["main"].params[0]) == (BATCH // count, *params["x"][1:])
    rng = np.random.default_rng(0)
    x, *others = (rng.standard_normal(shape).astype("float32") for shape in params.values())
    parts = [run(part, piece, *others) for piece in np.split(x, count)]
    np.testing.assert_allclose(np.concatenate(parts), run(mod, x, *others), rtol=1e-5)


MIXED: dict[str, Body] = {
    "relax.mean": lambda emit, x: emit(R.subtract(x, emit(R.mean(x, [0])))),
    "relax.nn.softmax": lambda emit, x: emit(R.nn.softmax(x, axis=0)),
    "relax.reshape": lambda emit, x: emit(R.reshape(x, (2, 12))),
    "no row for each sample": lambda emit, x: emit(R.permute_dims(x, [1, 0])),
}


@pytest.mark.parametrize("what", MIXED)
def test_what_needs_several_samples_is_refused(what: str) -> None:
    with pytest.raises(BatchError, match=what):
        SplitBatch(2)(function({"x": (BATCH, 4)}, MIXED[what]))


def test_unequal_parts_are_refused() -> None:
    with pytest.raises(BatchError, match="cannot be cut into 4 equal"):
        SplitBatch(4)(function({"x": (BATCH, 4)}, lambda emit, x: emit(R.exp(x))))


@pytest.mark.parametrize("kind", ["cross_entropy", "mse", "bce_with_logits"])
def test_the_losses_of_parts_add_up(kind: str) -> None:
    """Also where labels that do not count are all in one part."""
    mod = function({"x": (BATCH, 4)}, lambda emit, x: emit(R.tanh(x)))
    whole, part = AppendLoss(kind)(mod), AppendLoss(kind, parts=3)(SplitBatch(3)(mod))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((BATCH, 4)).astype("float32")
    y = np.array([-100, -100, 3, 0, -100, 1]) if kind == "cross_entropy" else rng.random((BATCH, 4), "float32")
    counted = [np.full((), 3, np.float32)] if kind == "cross_entropy" else []
    losses = [run(part, *pair, *counted) for pair in zip(np.split(x, 3), np.split(y, 3), strict=True)]
    assert sum(losses) == pytest.approx(float(run(whole, x, y)), rel=1e-5)
