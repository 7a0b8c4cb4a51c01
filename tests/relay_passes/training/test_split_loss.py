"""The losses of parts add up to the batch's, and a loss that mixes samples is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm.relax import op as R

from relay_passes import EvaluateLoss, SplitLoss
from relay_passes.analysis.batch_axis import WHOLE
from relay_passes.canonical.split_batch import CUT
from relay_passes.errors import BatchError
from relay_passes.ir import shape_of
from relay_passes.training.evaluate_loss import EVALUATE
from tests.relay_passes.modules import function, random, run

BATCH, COUNT = 6, 3
Body = Callable[..., Any]


def weighted(emit: Body, x: Any, t: Any) -> Any:
    """A mean by weights of the targets', plus a penalty."""
    weights = emit(R.square(t))
    mean = emit(R.divide(emit(R.sum(emit(x * weights))), emit(R.sum(weights))))
    return emit(R.add(mean, emit(R.mean(emit(R.abs(emit(x - t)))))))


def by_column(emit: Body, x: Any, t: Any) -> Any:
    """Columns' means, one weight each, and a constant."""
    means = emit(R.mean(emit(x * t), [0], keepdims=True))
    total = emit(R.sum(emit(R.multiply(means, emit(R.mean(t, [0], keepdims=True))))))
    return emit(R.subtract(emit(R.sqrt(emit(R.sum(emit(R.square(t)))))), total))


LOSSES: dict[str, tuple[Body, bool]] = {
    "mean": (lambda emit, x, t: emit(R.mean(emit(R.square(emit(x - t))))), False),
    "sum": (lambda emit, x, t: emit(R.negative(emit(R.sum(emit(R.mean(emit(x * t), [1])))))), False),
    "means by weights": (weighted, True),
    "columns": (by_column, True),
}
"""Each with whether a part reads whole targets."""


def of(body: Body) -> Any:
    mod = function({"x": (BATCH, 4), "t": (BATCH, 4)}, body, inputs=2)
    mod["main"] = mod["main"].with_attr("num_target", 1)
    return mod


@pytest.mark.parametrize("name", LOSSES)
def test_the_losses_of_parts_add_up(name: str) -> None:
    body, is_whole = LOSSES[name]
    mod = of(body)
    x, t = random((BATCH, 4), (BATCH, 4))
    part = SplitLoss(COUNT, "main")(mod)
    assert [(each.name, shape_of(each)) for each in part["main"].params] == [
        ("x", (2, 4)), ("t", (2, 4)), *[("t" + WHOLE, (BATCH, 4))] * is_whole
    ]  # fmt: skip
    assert list(part["main"].attrs[CUT]) == ["t"]
    pairs = zip(np.split(x, COUNT), np.split(t, COUNT), strict=True)
    assert sum(run(part, *pair, *[t] * is_whole) for pair in pairs) == pytest.approx(float(run(mod, x, t)), rel=1e-5)
    alone = EvaluateLoss("main")(mod)[EVALUATE]
    rows = BATCH if is_whole else 1
    assert [(each.name, shape_of(each)) for each in alone.params] == [
        ("evaluate.x", (rows, 4)), ("evaluate.t", (rows, 4))
    ]  # fmt: skip


MIXED: dict[str, Body] = {
    "relax.power": lambda emit, x, t: emit(R.power(emit(R.mean(emit(x * t))), emit(R.mean(t)))),
    "relax.subtract": lambda emit, x, t: emit(R.mean(emit(R.abs(emit(x - emit(R.mean(x, [0]))))))),
    "relax.multiply": lambda emit, x, t: emit(R.multiply(emit(R.mean(x)), emit(R.mean(x)))),
    "relax.max": lambda emit, x, t: emit(R.max(emit(x * t))),
    "no mean or sum": lambda emit, x, t: emit(R.max(t)),
}


@pytest.mark.parametrize("what", MIXED)
def test_what_needs_several_samples_is_refused(what: str) -> None:
    with pytest.raises(BatchError, match=what):
        SplitLoss(COUNT, "main")(of(MIXED[what]))
